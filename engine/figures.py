"""What operators want to know of an engine beyond what routers need: it travels with load reports."""

from typing import Literal

import msgspec

from parallel.rank.messages import RankPace

WaitsFor = Literal["rows", "kv_blocks", "step_tokens"]


class EngineFigures(msgspec.Struct, frozen=True, array_like=True):
    """Totals since the engine's start, and the state of its queue."""

    waits_for: WaitsFor
    """What the first in the queue lacks, and with it all behind it."""
    num_preempted_waiting: int
    """Requests in the queue that had a row before."""
    leader_s: dict[str, float]
    """Seconds of the leader's thread by part of the step."""
    step_counts: list[int]
    """Steps by duration, as in `engine.step_times`."""
    step_s: float
    """Duration of all steps."""
    paces: list[RankPace]
    """What each rank has last said of its steps."""
