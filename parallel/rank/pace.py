"""What a rank says of its steps, about once a second while it has any: how many there were, and how long they took."""

import time
from collections.abc import Callable

from parallel.rank.messages import RankPace

TELL_EVERY_S = 1.0


class Pace:
    """The steps of one rank in one generation."""

    def __init__(self, rank: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rank = rank
        self._now_s = now_s
        self._num_steps = 0
        self._total_s = 0.0
        self._told_s = now_s() - TELL_EVERY_S

    def record(self, seconds: float) -> RankPace | None:
        """Count one step; return what is to be told now, if anything is."""
        self._num_steps += 1
        self._total_s += seconds
        now_s = self._now_s()
        if now_s - self._told_s < TELL_EVERY_S:
            return None
        self._told_s = now_s
        return RankPace(self._rank, self._num_steps, self._total_s)
