"""How many replica groups the work that arrives needs: up at once, down slowly, one at a time.

    need = (prefill load + decode load) / target_load + backlog / drain_backlog_s

A load is groups' worth of work, seconds of one group's time for each second that passes. Requests in flight, Serve's
own measure, count a backlog as demand: that overshoots, drains warm caches, and starts again (the comparison is in
`benchmarks/routing`). Pure: time is an argument, so a simulator and a server run the same object.
"""

import math
from collections import deque
from typing import NamedTuple

from pydantic import Field, NonNegativeInt

from core.config import Config


class ScalingConfig(Config):
    """When groups are added and taken away. How many at least and at most is said where the policy is used."""

    target_load: float = Field(default=0.65, gt=0, le=1)
    """Share of its time that a group is to be busy. 0.65 keeps latencies low, 0.8 costs less."""
    drain_backlog_s: float = Field(default=20.0, gt=0)
    """In how long work that waits should be done."""
    max_resident: float = Field(default=0.9, gt=0, le=1)
    """Share of the KV blocks that requests may hold before one more group is wanted."""
    max_growth: float = Field(default=2.0, gt=1)
    """Most groups after `growth_period_s`, as a multiple of the groups before it."""
    growth_period_s: float = Field(default=30.0, gt=0)
    """A new group takes about as long to show what it changes."""
    down_after_s: float = Field(default=180.0, ge=0)
    """Groups are taken away down to the most that was needed in this time; nothing is before it has passed once."""
    down_margin: float = Field(default=0.1, ge=0)
    """What is left must be enough for this much more work than there was."""
    down_period_s: float = Field(default=60.0, ge=0)
    """Least time between two removals, so that one group drains at a time."""
    min_spare: NonNegativeInt = 0
    """Groups beyond the need, for bursts that are over before a group has started."""
    to_zero_after_s: float | None = Field(default=None, gt=0)
    """Without any work for so long, the last group goes too. Default: never."""


class Observation(NamedTuple):
    """What all groups of a model do now."""

    num_groups: int
    """Groups that serve or start; not those that drain."""
    num_draining: int = 0
    prefill_load: float = 0.0
    """Uncached prompt tokens that arrive in a second, by the tokens that one group prefills in a second."""
    decode_load: float = 0.0
    """Output tokens in a second, by the tokens that one group decodes in a second."""
    backlog_s: float = 0.0
    """Seconds of one group's time that accepted, uncomputed prompts need."""
    resident: float = 0.0
    """KV tokens that requests hold, by the tokens that one group has room for."""
    num_held: int = 0
    """Requests that wait at gateways because there is no group."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.prefill_load or self.decode_load or self.backlog_s or self.resident or self.num_held)


class AutoscalingPolicy:
    """Keeps what was wanted in the last minutes. Ask as often as you like; once a second is enough."""

    def __init__(self, config: ScalingConfig, min_groups: int = 1, max_groups: int = 1) -> None:
        """`min_groups` of 0 is needed for `to_zero_after_s` to have an effect."""
        self._config = config
        self.set_bounds(min_groups, max_groups)
        self._needs = SlidingMaximum(config.down_after_s)
        self._shortages = SlidingMaximum(config.growth_period_s)  # group counts, negative: their maximum is the least
        self._first_s: float | None = None
        self._busy_s = -math.inf
        self._removed_s = -math.inf

    def set_bounds(self, min_groups: int, max_groups: int) -> None:
        """Change the least and the most groups."""
        self._min_groups = min_groups
        self._max_groups = max_groups

    def desired(self, now_s: float, observation: Observation) -> int:
        """Return how many groups there should be; mutates the memory of what was wanted."""
        if self._first_s is None:
            self._first_s = now_s
            # What starts with no group has not become idle: it waits for its first request.
            self._busy_s = now_s if observation.num_groups else -math.inf
        if not observation.is_idle:
            self._busy_s = now_s
        need = self.need(observation)
        most_needed = self._needs.add(now_s, need)
        fewest_groups = -int(self._shortages.add(now_s, -observation.num_groups))
        wanted = self._wanted(now_s, need)
        num_groups = observation.num_groups
        if wanted > num_groups:
            limit = max(1, math.floor(fewest_groups * self._config.max_growth))
            return min(self._max_groups, max(num_groups, min(wanted, limit), self._min_groups))
        kept = self._wanted(now_s, most_needed * (1 + self._config.down_margin))
        if kept < num_groups and self._may_remove(now_s, observation):
            self._removed_s = now_s
            return num_groups - 1
        return min(num_groups, self._max_groups)

    def need(self, observation: Observation) -> float:
        """Return the groups that the work needs now, without bounds, spares or memory."""
        config = self._config
        work = (observation.prefill_load + observation.decode_load) / config.target_load
        work += observation.backlog_s / config.drain_backlog_s
        return max(work, observation.resident / config.max_resident, min(1, observation.num_held))

    def _wanted(self, now_s: float, need: float) -> int:
        """Return the groups to have for a need."""
        if self._is_to_be_zero(now_s):
            return 0
        least = max(1, self._min_groups)
        return min(self._max_groups, max(least, math.ceil(need) + self._config.min_spare))

    def _is_to_be_zero(self, now_s: float) -> bool:
        idle_s = self._config.to_zero_after_s
        return self._min_groups == 0 and idle_s is not None and now_s - self._busy_s >= idle_s

    def _may_remove(self, now_s: float, observation: Observation) -> bool:
        assert self._first_s is not None
        has_memory = now_s - self._first_s >= self._config.down_after_s
        return has_memory and not observation.num_draining and now_s - self._removed_s >= self._config.down_period_s


class SlidingMaximum:
    """The largest value of the last `length_s` seconds; adding costs O(1) on average."""

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._values: deque[tuple[float, float]] = deque()  # falling: a value that a later one exceeds is not kept

    def add(self, now_s: float, value: float) -> float:
        """Add a value, and return the largest; times must not go back."""
        while self._values and self._values[-1][1] <= value:
            self._values.pop()
        self._values.append((now_s, value))
        while self._values[0][0] < now_s - self._length_s:
            self._values.popleft()
        return self._values[0][1]
