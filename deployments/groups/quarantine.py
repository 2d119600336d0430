"""Requests that kill groups: how they are told from those that merely were there, and kept out.

A group dies under every request it holds, so its death accuses all of them. What clears a request is a new token; what
convicts one is that groups keep dying under it while it gets none. Before the last attempt the accused are tried one by
one (see `UnbrokenStreams`), so that an innocent does not die of its neighbour a third time; one that could not have its
turn is given twice as many attempts.
"""

import hashlib

import msgspec

from core.clock import Clock
from engine.request import GenerationRequest
from parallel.plan import pack_integers

QUARANTINE_S = 600.0
"""How long a convicted request is refused when it is sent again."""
MAX_QUARANTINED = 1024
"""Fingerprints remembered; the oldest goes first."""

_MAX_DEATHS_WITHOUT_TOKEN = 3
_MAX_DEATHS_IN_A_ROW = 8
"""Of a request that gets a few tokens each time: it kills too, only later."""
_CLEARING_TOKENS = 16
"""An attempt that brought that many proves the groups died of something else."""


class Strikes:
    """The deaths one request has seen."""

    def __init__(self) -> None:
        self._num_without_token = 0
        self._num_in_a_row = 0
        self._was_alone = False

    def died(self, num_new_tokens: int, *, was_alone: bool) -> None:
        """Count the death of a group that worked on the request and gave `num_new_tokens`.

        `was_alone`: no other suspect was being tried.
        """
        self._was_alone = was_alone
        self._num_without_token = self._num_without_token + 1 if num_new_tokens == 0 else 0
        self._num_in_a_row = self._num_in_a_row + 1 if num_new_tokens < _CLEARING_TOKENS else 0

    def is_cleared_by(self, num_new_tokens: int) -> bool:
        """Return whether an attempt that has brought so many tokens takes the suspicion away, whatever comes."""
        was_without_token = self._num_without_token >= _MAX_DEATHS_WITHOUT_TOKEN - 1
        return num_new_tokens >= (1 if was_without_token else _CLEARING_TOKENS)

    @property
    def is_suspect(self) -> bool:
        """Whether one more death convicts it, if it is alone then."""
        without, in_a_row = self._num_without_token, self._num_in_a_row
        return without >= _MAX_DEATHS_WITHOUT_TOKEN - 1 or in_a_row >= _MAX_DEATHS_IN_A_ROW - 1

    @property
    def is_convicted(self) -> bool:
        """Whether it is given up."""
        patience = 1 if self._was_alone else 2
        without, in_a_row = self._num_without_token, self._num_in_a_row
        return without >= patience * _MAX_DEATHS_WITHOUT_TOKEN or in_a_row >= patience * _MAX_DEATHS_IN_A_ROW


class Quarantine:
    """Fingerprints of convicted requests; bounded in number and time."""

    def __init__(self, clock: Clock, period_s: float = QUARANTINE_S, max_entries: int = MAX_QUARANTINED) -> None:
        self._clock = clock
        self._period_s = period_s
        self._max_entries = max_entries
        self._until_s: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until_s)

    def add(self, model: str, request: GenerationRequest) -> None:
        """Refuse the request for the period from now on."""
        fingerprint = _fingerprint(model, request)
        self._until_s.pop(fingerprint, None)
        self._until_s[fingerprint] = self._clock.now_s() + self._period_s
        while len(self._until_s) > self._max_entries:
            del self._until_s[next(iter(self._until_s))]

    def has(self, model: str, request: GenerationRequest) -> bool:
        """Return whether the request is refused. Costs nothing while nobody is."""
        self._expire()
        return bool(self._until_s) and _fingerprint(model, request) in self._until_s

    def _expire(self) -> None:
        # The oldest come first, and all stay equally long.
        now_s = self._clock.now_s()
        while self._until_s and (oldest := next(iter(self._until_s))) and self._until_s[oldest] <= now_s:
            del self._until_s[oldest]


def _fingerprint(model: str, request: GenerationRequest) -> bytes:
    """Return what a request sent again has in common with the first, and other callers' requests have not."""
    # The seed is drawn anew for callers that give none, so it is not a part.
    sampling = msgspec.msgpack.encode(msgspec.structs.replace(request.sampling, seed=0))
    digest = hashlib.blake2b(digest_size=16)
    for part in (model.encode(), request.cache_salt.encode(), sampling):
        digest.update(len(part).to_bytes(4, "little") + part)
    digest.update(pack_integers(request.token_ids[: request.num_prompt_tokens]))
    return digest.digest()
