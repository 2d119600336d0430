"""How long steps take, as a histogram that costs next to nothing to fill and little to send."""

from bisect import bisect_left

STEP_S = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1, 2, 5)
"""Upper limits: from a small model's decode step on a GPU to a long prefill on a CPU."""


class StepTimes:
    """Counts steps by their duration. Written by the engine thread, read by any."""

    __slots__ = ("_counts", "total_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(STEP_S) + 1)
        self.total_s = 0.0

    def record(self, seconds: float) -> None:
        """Count one step."""
        self._counts[bisect_left(STEP_S, seconds)] += 1
        self.total_s += seconds

    def counts(self) -> list[int]:
        """Return a copy of the number of steps up to each limit, without those up to the one before; last: longer."""
        return list(self._counts)
