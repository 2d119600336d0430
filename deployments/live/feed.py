"""What the page is told when it asks: who serves now, and the seconds it has not seen.

The page asks and nothing is pushed, so no connection is held open for it and a page that stops reading costs nothing.
Where there are several gateway copies any of them may answer. So the page says of each copy it knows up to which second
it has its history, and adds up what the copies tell.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
from starlette.datastructures import QueryParams

from core.errors import InvalidRequest
from deployments.live.history import Second
from deployments.live.latencies import BucketScale

MAX_COPIES = 64
"""A page that knows more gateway copies says so of the latest only."""


class RankView(msgspec.Struct, frozen=True):
    """One rank of a group."""

    rank: int
    node: str | None
    pid: int | None
    device: str | None
    phase: str | None
    """What it does while it starts: connect, load, warmup, ready."""
    percent: int | None
    """Of the phase."""


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica group, the same at every gateway copy."""

    group_id: str
    model: str
    application: str
    state: str
    is_connected: bool
    """Whether this gateway copy can reach it."""
    generation: int
    """How often its ranks were restarted in place."""
    world_size: int
    error: str | None
    ranks: list[RankView]
    num_running: int = 0
    num_waiting: int = 0
    num_preemptions: int = 0
    kv_use: float = 0.0
    num_kv_tokens: int = 0
    """Resident tokens of running requests."""
    max_kv_tokens: int = 0
    prompt_tokens_s: float = 0.0
    output_tokens_s: float = 0.0
    step_s: float | None = None
    wait_s: float = 0.0
    """How long a new request would wait for others, as predicted."""


class ModelView(msgspec.Struct, frozen=True):
    """One model; counts are of this gateway copy since it started."""

    name: str
    max_model_len: int
    num_resumes: int
    num_retries: int
    num_given_up: int


class FeedAnswer(msgspec.Struct, frozen=True):
    """The body of /live/feed."""

    copy: str
    """Which gateway copy answers."""
    now_s: float
    """Its wall clock."""
    num_open: int
    """Streams open at this copy."""
    num_held: int
    """Requests and streams that wait at this copy for a group."""
    scale: BucketScale
    models: list[ModelView]
    groups: list[GroupView]
    seconds: list[Second]


class FeedQuery(NamedTuple):
    """What a page asks for."""

    viewer: str
    """The name it gave itself."""
    seen: Mapping[str, int]
    """The last second it has, by gateway copy."""

    @classmethod
    def parse(cls, params: QueryParams) -> "FeedQuery":
        """Read `?viewer=NAME&seen=COPY:SECOND,COPY:SECOND`. Raises InvalidRequest."""
        given = params.get("seen", "")
        pairs = [entry.partition(":") for entry in given.split(",")] if given else []
        if len(pairs) > MAX_COPIES or not all(second.isascii() and second[:12].isdecimal() for _, _, second in pairs):
            raise InvalidRequest(f"seen must be at most {MAX_COPIES} pairs COPY:SECOND, with commas", param="seen")
        return cls(params.get("viewer", ""), {copy: int(second[:12]) for copy, _, second in pairs})


Sees = Callable[[str], bool]
"""Whether a model exists for the caller."""
