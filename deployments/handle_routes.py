"""Where the requests of one Serve handle go, decided by what the handle has sent and what has come back, and no more.

Nobody here tokenises: four bytes of text count as a token, which is about right for English and errs to one side for
all replicas alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from random import Random

import msgspec
from pydantic import PositiveFloat, PositiveInt

from cluster.routing.base import PRIOR_MAX_STEP_TOKENS, PRIOR_STEP_COSTS, RoutingRequest
from cluster.routing.eligibility import EligibilityConfig
from cluster.routing.history import RoutingHistory
from cluster.routing.policies import POLICIES, PolicyName
from cluster.routing.reservation import Reservation
from cluster.routing.router import Router
from core.config import Config
from engine.prefix_keys import SPAN_TOKENS, prefix_keys
from engine.request import EngineLoad

BYTES_PER_TOKEN = 4
"""As in the packed tokens of `prefix_keys`, so that text can stand in their place."""

DEFAULT_MAX_TOKENS = 256

PROMPT_FIELDS = ("messages", "prompt", "input", "text")
LENGTH_FIELDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class HandleRoutesConfig(Config):
    """What is known of the replicas of a deployment that says nothing of itself."""

    policy: PolicyName = "cost"
    """Any of `cluster.routing.policies`."""
    prefill_tokens_per_s: PositiveFloat = 1 / PRIOR_STEP_COSTS.prefill_token_s
    """Prompt tokens that a replica computes a second; four times too many or too few matters little."""
    cached_tokens: PositiveInt = 500_000
    """Tokens that a replica's prefix cache holds."""


class HandleRequest(msgspec.Struct, frozen=True):
    """What can be told of a call from its arguments."""

    prompt: bytes = b""
    max_tokens: int = DEFAULT_MAX_TOKENS

    @classmethod
    def of(cls, arguments: Iterable[object]) -> "HandleRequest":
        """Return what the first argument with a prompt says: text, or a mapping or an object with a prompt in it."""
        for argument in arguments:
            if isinstance(argument, str):
                return cls(argument.encode())
            fields = _fields(argument)
            for name in PROMPT_FIELDS:
                if fields.get(name):
                    return cls(_as_bytes(fields[name]), _max_tokens(fields))
        return cls()


class HandleRoutes:
    """Chooses a replica for each call and counts the call there until it ends. Used by one thread."""

    def __init__(self, config: HandleRoutesConfig, rng: Random | None = None) -> None:
        policy = POLICIES[config.policy](rng if rng is not None else Random())
        self._router = Router(policy, eligibility=EligibilityConfig(eject_after_s=None))
        self._history = RoutingHistory(self._router, config.cached_tokens // SPAN_TOKENS)
        self._load = EngineLoad(
            *[0] * 11,
            max_step_tokens=PRIOR_MAX_STEP_TOKENS,
            step_costs=msgspec.structs.replace(PRIOR_STEP_COSTS, prefill_token_s=1 / config.prefill_tokens_per_s),
            max_kv_tokens=config.cached_tokens,
        )
        self._replicas: set[str] = set()
        self._open: dict[str, tuple[Reservation, Sequence[int]]] = {}

    def choose(self, call_id: str, replica_ids: Sequence[str], request: HandleRequest) -> str:
        """Return the replica to use; the call counts there until `end`. A call that chooses again counts once."""
        self.end(call_id, is_done=False)
        for replica_id in replica_ids:
            self._find(replica_id)
        keys = prefix_keys(request.prompt, "")
        num_tokens = max(1, len(request.prompt) // BYTES_PER_TOKEN)
        wanted = RoutingRequest(num_tokens, request.max_tokens, prefix_keys=keys)
        reservation = self._router.reserve(replica_ids, wanted)
        self._open[call_id] = (reservation, keys)
        return reservation.group_id

    def end(self, call_id: str, replica_id: str | None = None, *, is_done: bool = True) -> None:
        """Count a call no longer, if it is (still) at `replica_id`; None means wherever it is.

        Serve may tell late that a call left a replica which refused it, when it has been placed elsewhere since.
        """
        entry = self._open.get(call_id)
        if entry is None or replica_id not in (None, entry[0].group_id):
            return
        del self._open[call_id]
        reservation, keys = entry
        reservation.release()
        if is_done and reservation.group_id in self._replicas:
            self._history.place(reservation.group_id, keys)

    def keep_only(self, replica_ids: Iterable[str]) -> None:
        """Forget all replicas but these."""
        gone = self._replicas.difference(replica_ids)
        for replica_id in gone:
            self._router.forget(replica_id)
            self._history.forget(replica_id)
        self._replicas -= gone

    def _find(self, replica_id: str) -> None:
        if replica_id not in self._replicas:
            self._replicas.add(replica_id)
            self._router.report(replica_id, self._load)
            self._history.find(replica_id)


def _fields(argument: object) -> Mapping[str, object]:
    if isinstance(argument, Mapping):
        return argument
    return vars(argument) if hasattr(argument, "__dict__") else {}


def _as_bytes(prompt: object) -> bytes:
    """Return bytes that begin alike for prompts that begin alike."""
    return prompt.encode() if isinstance(prompt, str) else msgspec.json.encode(prompt, enc_hook=_plain)


def _plain(value: object) -> object:
    return vars(value) if hasattr(value, "__dict__") else repr(value)


def _max_tokens(fields: Mapping[str, object]) -> int:
    lengths = (fields.get(name) for name in LENGTH_FIELDS)
    return next((length for length in lengths if isinstance(length, int)), DEFAULT_MAX_TOKENS)
