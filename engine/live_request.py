"""A request inside the engine: its life, and its stays on a row."""

from engine.backlog import Claim
from engine.prefix_cache import BlockHasher
from engine.request import EventSink, GenerationRequest
from engine.token_log import TokenLog
from parallel.plan import RowStart, unpack_integers

_TOKEN_BYTES = 4


class LiveRequest:
    """An accepted request until its terminal event. Owned by the engine thread once it is in the inbox."""

    __slots__ = (
        "arrival",
        "claim",
        "deadline_at_s",
        "hasher",
        "is_ended",
        "latest_start_s",
        "max_length",
        "num_cached_tokens",
        "order",
        "packed_tokens",
        "request",
        "sink",
        "stay",
        "stop_ids",
    )

    def __init__(
        self,
        request: GenerationRequest,
        sink: EventSink,
        *,
        packed_tokens: bytes,
        arrival: int,
        due_s: float,
        deadline_at_s: float | None,
        latest_start_s: float | None,
        max_length: int,
        stop_ids: frozenset[int],
        hasher: BlockHasher,
        claim: Claim,
    ) -> None:
        self.request = request
        self.sink = sink
        self.packed_tokens = bytearray(packed_tokens)
        """Prompt and committed output, but for what its stay has not taken over from the token log."""
        self.arrival = arrival
        """Order of submission."""
        self.order = due_s, arrival
        """Sort key of running, of waiting within a tenant, and of preemption: lower goes first and stays longer."""
        self.deadline_at_s = deadline_at_s
        """On the engine's clock."""
        self.latest_start_s = latest_start_s
        """A request that still waits then cannot meet its deadline any more; None if it has none."""
        self.claim = claim
        """What it is expected to need."""
        self.max_length = max_length
        """Prompt and output tokens at which the request ends with `length`."""
        self.stop_ids = stop_ids
        """Tokens that end the request and are not part of its output."""
        self.hasher = hasher
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache when the request first ran; None before that and once reported."""
        self.stay: RowStay | None = None
        """Its place on the ranks; None while it waits."""
        self.is_ended = False
        """Whether its terminal event was made."""

    @property
    def request_id(self) -> str:
        """The request's name."""
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        """Prompt and committed output tokens; they survive preemption."""
        num_logged = 0 if self.stay is None else self.stay.num_logged_tokens
        return len(self.packed_tokens) // _TOKEN_BYTES + num_logged

    @property
    def token_ids(self) -> list[int]:
        """Those tokens."""
        logged = b"" if self.stay is None else self.stay.read_log()
        return unpack_integers(bytes(self.packed_tokens) + logged).tolist()

    def append_token(self, token_id: int) -> None:
        """Commit a token that is not in the token log."""
        self.packed_tokens += token_id.to_bytes(_TOKEN_BYTES, "little")

    def take_num_cached_tokens(self) -> int:
        """Return the prefix-cache hit for the first event, 0 for all later ones."""
        count, self.num_cached_tokens = self.num_cached_tokens or 0, 0
        return count


class RowStay:
    """A request's time on one row, from admission to its end or its preemption: first it prefills, then it decodes.

    A step is scheduled before it is computed, and more than one may be under way. So there are two counts of a
    prefill's tokens: what submitted plans will have computed, and what committed steps have computed. A decode is
    described by ticks, for it has a part in every decode step, with one token.
    """

    __slots__ = (
        "_log",
        "_num_prefilled_tokens",
        "_read_tick",
        "blocks",
        "live",
        "num_published_blocks",
        "num_scheduled_tokens",
        "position_of_tick_0",
        "row",
    )

    def __init__(
        self, live: LiveRequest, row: int, blocks: list[int], num_cached_blocks: int, block_size: int, log: TokenLog
    ) -> None:
        self.live = live
        self.row = row
        self.blocks = blocks
        """Block table."""
        self.num_published_blocks = num_cached_blocks
        """Leading blocks that the prefix cache knows."""
        self.num_scheduled_tokens = num_cached_blocks * block_size
        """Leading tokens whose KV is written once all submitted plans have run; counted until the prefill is over."""
        self.position_of_tick_0 = 0
        """A decode computes the token at position `position_of_tick_0 + tick`; set when it begins."""
        self._log = log
        self._num_prefilled_tokens = self.num_scheduled_tokens
        self._read_tick: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether the request has left this row; results that still come are void."""
        return self.live.stay is not self

    @property
    def num_unscheduled_tokens(self) -> int:
        """Tokens that a prefill has still to be scheduled for."""
        return self.live.num_tokens - self.num_scheduled_tokens

    @property
    def num_computed_tokens(self) -> int:
        """Leading tokens whose KV committed steps have written."""
        return self._num_prefilled_tokens if self._read_tick is None else self.live.num_tokens - 1

    @property
    def num_logged_tokens(self) -> int:
        """Tokens in the log that the request has not taken over."""
        return 0 if self._read_tick is None else self._log.tick - self._read_tick

    def commit_prefill(self, num_tokens: int, sampled: int | None, tick: int) -> None:
        """Count computed tokens; `sampled` is the token that ends the prefill, which was scheduled with that tick."""
        self._num_prefilled_tokens += num_tokens
        if sampled is not None:
            self.live.append_token(sampled)
            self._read_tick = tick

    def read_log(self) -> bytes:
        """Return the tokens in the log that the request has not taken over, packed."""
        return b"" if self._read_tick is None else self._log.read(self.row, self._read_tick)

    def take_over_tokens(self) -> int:
        """Move the row's tokens from the log to the request; return `num_computed_tokens`."""
        if self._read_tick is None:
            return self._num_prefilled_tokens
        packed_tokens = self.live.packed_tokens
        packed_tokens += self._log.read(self.row, self._read_tick)
        self._read_tick = self._log.tick
        return len(packed_tokens) // _TOKEN_BYTES - 1

    def to_row_start(self) -> RowStart:
        """Return what the ranks need to take the row over; the blocks are a copy."""
        request = self.live.request
        return RowStart(
            row=self.row,
            token_ids=self.live.token_ids,
            num_prompt_tokens=request.num_prompt_tokens,
            num_computed_tokens=self.num_computed_tokens,
            block_ids=self.blocks.copy(),
            sampling=request.sampling,
        )
