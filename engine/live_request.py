"""A request inside the engine: its life, and its stays on a row."""

from engine.prefix_cache import BlockHasher
from engine.request import EventSink, GenerationRequest
from parallel.plan import RowStart


class LiveRequest:
    """An accepted request until its terminal event. Owned by the engine thread once it is in the inbox."""

    __slots__ = (
        "arrival",
        "deadline_at_s",
        "hasher",
        "is_ended",
        "max_length",
        "num_cached_tokens",
        "request",
        "sink",
        "stay",
        "stop_ids",
        "token_ids",
    )

    def __init__(
        self,
        request: GenerationRequest,
        sink: EventSink,
        *,
        arrival: int,
        deadline_at_s: float | None,
        max_length: int,
        stop_ids: frozenset[int],
        hasher: BlockHasher,
    ) -> None:
        self.request = request
        self.sink = sink
        self.arrival = arrival
        """Order of submission."""
        self.deadline_at_s = deadline_at_s
        """On the engine's clock."""
        self.max_length = max_length
        """Prompt and output tokens at which the request ends with `length`."""
        self.stop_ids = stop_ids
        """Tokens that end the request and are not part of its output."""
        self.hasher = hasher
        self.token_ids = list(request.token_ids)
        """Prompt and every committed output token; survives preemption."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache when the request first ran; None before that and once reported."""
        self.stay: RowStay | None = None
        """Its place on the ranks; None while it waits."""
        self.is_ended = False
        """Whether its terminal event was made."""

    @property
    def order(self) -> tuple[int, int]:
        """Sort key of running, waiting and preemption: lower goes first and stays longer."""
        return self.request.priority, self.arrival

    @property
    def num_outstanding_tokens(self) -> int:
        """Prefill tokens not yet computed plus tokens that may still be generated."""
        stay = self.stay
        return self.max_length - (stay.num_computed_tokens if stay is not None else 0)

    def take_num_cached_tokens(self) -> int:
        """Return the prefix-cache hit for the first event, 0 for all later ones."""
        count, self.num_cached_tokens = self.num_cached_tokens or 0, 0
        return count


class RowStay:
    """A request's time on one row, from admission to its end or its preemption.

    A step is scheduled before it is computed, and more than one may be under way. So there are two counts: what
    submitted plans will have computed, and what committed steps have computed.
    """

    __slots__ = (
        "blocks",
        "live",
        "num_computed_tokens",
        "num_expected_tokens",
        "num_published_blocks",
        "num_scheduled_tokens",
        "row",
    )

    def __init__(self, live: LiveRequest, row: int, blocks: list[int], num_cached_blocks: int, block_size: int) -> None:
        self.live = live
        self.row = row
        self.blocks = blocks
        """Block table."""
        self.num_published_blocks = num_cached_blocks
        """Leading blocks that the prefix cache knows."""
        self.num_computed_tokens = num_cached_blocks * block_size
        """Leading tokens whose KV committed steps have written."""
        self.num_scheduled_tokens = self.num_computed_tokens
        """Leading tokens whose KV is written once all submitted plans have run."""
        self.num_expected_tokens = len(live.token_ids)
        """Tokens the row holds once all submitted plans have run; the ranks know the newest before we do."""

    @property
    def is_over(self) -> bool:
        """Whether the request has left this row; results that still come are void."""
        return self.live.stay is not self

    @property
    def num_unscheduled_tokens(self) -> int:
        """Tokens a next step could compute: one for a decode, more for a prefill, none once the end is certain."""
        if self.num_expected_tokens >= self.live.max_length:
            return 0
        return self.num_expected_tokens - self.num_scheduled_tokens

    def to_row_start(self) -> RowStart:
        """Return what the ranks need to take the row over; the token ids are a copy."""
        request = self.live.request
        return RowStart(
            row=self.row,
            token_ids=self.live.token_ids.copy(),
            num_prompt_tokens=request.num_prompt_tokens,
            num_computed_tokens=self.num_computed_tokens,
            block_ids=self.blocks.copy(),
            sampling=request.sampling,
        )
