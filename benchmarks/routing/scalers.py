"""Who says how many replicas there should be: our policy and what others do, each asked every few seconds."""

import math
from collections import deque
from typing import NamedTuple, Protocol

from cluster.autoscaling.policy import AutoscalingPolicy, Observation, ScalingConfig


class FleetState(NamedTuple):
    """What can be seen of all replicas at one moment."""

    now_s: float
    num_groups: int
    """Serving or starting."""
    num_starting: int
    num_ongoing: int
    """Requests anywhere between arrival and last token."""
    waiting_per_group: float
    """Requests that have not begun, over the serving replicas."""
    kv_used: float
    """Share of the serving replicas' KV blocks in use."""
    work: Observation
    """What our own policy looks at."""


class Scaler(Protocol):
    """Decides on what it sees and remembers."""

    def desired(self, state: FleetState) -> int:
        """Return the number of replicas to have, before any bounds."""
        ...


class Fixed:
    """Always the same number."""

    def __init__(self, num_groups: int) -> None:
        self._num_groups = num_groups

    def desired(self, state: FleetState) -> int:
        """Return that number."""
        return self._num_groups


class TokenWork:
    """The policy of `cluster.autoscaling`, as it is."""

    def __init__(self, config: ScalingConfig, min_groups: int, max_groups: int) -> None:
        self._policy = AutoscalingPolicy(config, min_groups, max_groups)

    def desired(self, state: FleetState) -> int:
        """Return what the policy wants."""
        return self._policy.desired(state.now_s, state.work)


class OngoingRequests:
    """Ray Serve's: mean ongoing requests over a target, obeyed once it has asked for the same direction long enough.

    The defaults are Serve's (target 2, look-back 30 s, up after 30 s, down after 600 s).
    """

    def __init__(
        self, target: float = 2.0, look_back_s: float = 30.0, up_after_s: float = 30.0, down_after_s: float = 600.0
    ) -> None:
        self._target = target
        self._look_back_s = look_back_s
        self._up_after_s = up_after_s
        self._down_after_s = down_after_s
        self._samples: deque[tuple[float, int]] = deque()
        self._direction = 0
        self._since_s = 0.0

    def desired(self, state: FleetState) -> int:
        """Return the current number until the delay of a direction has passed."""
        self._samples.append((state.now_s, state.num_ongoing))
        while self._samples[0][0] < state.now_s - self._look_back_s:
            self._samples.popleft()
        mean = sum(count for _, count in self._samples) / len(self._samples)
        wanted = max(1, math.ceil(mean / self._target))
        direction = (wanted > state.num_groups) - (wanted < state.num_groups)
        if direction != self._direction:
            self._direction, self._since_s = direction, state.now_s
        delay_s = self._up_after_s if direction > 0 else self._down_after_s
        if direction == 0 or state.now_s - self._since_s < delay_s:
            return state.num_groups
        self._direction = 0
        return wanted


class Saturation:
    """One more when memory or queues fill, one less when both have been nearly empty for a while."""

    def __init__(self, down_after_s: float = 120.0) -> None:
        self._down_after_s = down_after_s
        self._calm_since_s: float | None = None

    def desired(self, state: FleetState) -> int:
        """Return the current number, or one more or less."""
        if state.kv_used > 0.7 or state.waiting_per_group > 2:
            self._calm_since_s = None
            return state.num_groups + (state.num_starting == 0)
        if state.kv_used > 0.25 or state.waiting_per_group > 0.2:
            self._calm_since_s = None
            return state.num_groups
        if self._calm_since_s is None:
            self._calm_since_s = state.now_s
        if state.now_s - self._calm_since_s < self._down_after_s:
            return state.num_groups
        self._calm_since_s = state.now_s
        return max(1, state.num_groups - 1)
