"""What one bad replica does to everybody: half as fast as it should be, or killed in the middle of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.routing.service import Service, ServiceSpec
from benchmarks.routing.simulation import Event, simulate
from benchmarks.routing.slo import Outcome
from benchmarks.routing.traces import Trace


class Slowed(NamedTuple):
    """Mean TTFT without and with a slow replica."""

    healthy_s: float
    slow_s: float

    @property
    def ratio(self) -> float:
        """How much longer requests wait."""
        return self.slow_s / self.healthy_s


def slow_replica(trace: Trace, spec: ServiceSpec, num_replicas: int, speed: float = 0.5) -> Slowed:
    """Return what it costs that one of the replicas runs at `speed`."""
    healthy = simulate(trace, spec, num_replicas)
    slow = simulate(trace, spec, num_replicas, speeds=[speed])
    return Slowed(healthy.figures.ttft_mean_s, slow.figures.ttft_mean_s)


@dataclass(frozen=True)
class KillPlan:
    """When replicas die, how soon that is noticed, and when another stands in their place."""

    detected_after_s: float = 0.1
    """The connection of a dead process breaks at once; a frozen one takes its deadline."""
    back_after_s: float = 60.0
    settled_after_s: float = 5.0
    """From then on waiting times should be what they were."""
    window_s: float = 30.0
    """How long that is looked at."""


class Killed(NamedTuple):
    """What kills did, over all of them."""

    num_failed: int
    num_moved: int
    """Requests that were carried to another replica."""
    p99_before_s: float
    """TTFT of the requests that arrived in the windows, in the run without kills."""
    p99_after_s: float
    """Of the same requests, with kills."""


def killed_replicas(
    trace: Trace, spec: ServiceSpec, num_replicas: int, at_s: Sequence[float], plan: KillPlan
) -> Killed:
    """Kill the longest-lived replica at each of the times, and compare with the same run without kills."""
    calm = simulate(trace, spec, num_replicas)
    events = [event for moment_s in at_s for event in _one_kill(moment_s, plan)]
    disturbed = simulate(trace, spec, num_replicas, events=events)
    return Killed(
        num_failed=sum(outcome.finished_s is None for outcome in disturbed.outcomes),
        num_moved=sum(outcome.num_attempts > 1 for outcome in disturbed.outcomes),
        p99_before_s=_p99_s(calm.outcomes, at_s, plan),
        p99_after_s=_p99_s(disturbed.outcomes, at_s, plan),
    )


def _one_kill(at_s: float, plan: KillPlan) -> list[Event]:
    victims: list[str] = []

    def kill(service: Service) -> None:
        victims.append(service.ready[0])
        service.replica(victims[0]).kill()

    return [
        Event(at_s, kill),
        Event(at_s + plan.detected_after_s, lambda service: service.remove(victims[0])),
        Event(at_s + plan.back_after_s, lambda service: service.start()),
    ]


def _p99_s(outcomes: Sequence[Outcome], kills_s: Sequence[float], plan: KillPlan) -> float:
    settled = [
        outcome.ttft_s
        for outcome in outcomes
        for kill_s in kills_s
        if plan.settled_after_s <= outcome.arrival.at_s - kill_s < plan.settled_after_s + plan.window_s
    ]
    return float(np.percentile(settled, 99))
