"""The policy as Ray Serve's controller asks it.

    deployments:
      - name: ReplicaGroup
        autoscaling_config:
          min_replicas: 1
          max_replicas: 8
          metrics_interval_s: 1       # how often groups report
          look_back_period_s: 5
          upscale_delay_s: 0          # the policy has its own delays
          downscale_delay_s: 0
          policy:
            policy_function: cluster.autoscaling.serve_policy:TokenWorkPolicy
            policy_kwargs: {target_load: 0.65}

Serve says how many replicas there are and which bounds they have; groups say what they do, by
`record_autoscaling_stats`. A policy returns a number: which replica goes is Serve's choice alone. It takes one that is
not running yet, then one that is not on the head node, then one on the node with the fewest replicas, and of these the
youngest (`_get_replicas_to_stop`, Ray 2.60). The youngest has had the least time to fill its prefix cache.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cluster.autoscaling.policy import AutoscalingPolicy, Observation, ScalingConfig


class TimedValue(Protocol):
    """One value of a metric, Serve's `TimeStampedValue`."""

    value: float


class Context(Protocol):
    """What of Serve's `AutoscalingContext` is read."""

    current_num_replicas: int
    target_num_replicas: int
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Sequence[TimedValue]]] | None:
        """What each running replica reported, by metric and replica, oldest value first."""
        ...

    @property
    def total_num_requests(self) -> float:
        """Requests at Serve handles; groups get theirs by the token channel, so these only wake a model."""
        ...


class TokenWorkPolicy:
    """A Serve autoscaling policy; `policy_kwargs` are the fields of `ScalingConfig`. Lives in the controller."""

    def __init__(self, **settings: Any) -> None:
        """Raise InvalidConfig for settings that are none."""
        self._policy = AutoscalingPolicy(ScalingConfig.parse(settings, "policy_kwargs"))

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas there should be, and no state for Serve to keep."""
        self._policy.set_bounds(context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas)
        return self._policy.desired(time.monotonic(), observe(context)), {}


def observe(context: Context) -> Observation:
    """Return the sums of what all running groups reported last."""
    metrics = context.raw_metrics or {}

    def total(name: str) -> float:
        return sum(series[-1].value for series in metrics.get(name, {}).values() if series)

    return Observation(
        # Serve does not tell what drains: `down_period_s` keeps removals apart.
        num_groups=context.target_num_replicas,
        prefill_load=total("prefill_load"),
        decode_load=total("decode_load"),
        backlog_s=total("backlog_s"),
        resident=total("resident"),
        num_held=0 if context.current_num_replicas else int(context.total_num_requests),
    )
