"""A run in which replicas come and go: what a scaler costs in replica-seconds, and what callers get for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.routing.events import EventLoop
from benchmarks.routing.scalers import FleetState, Scaler
from benchmarks.routing.service import Service, ServiceSpec
from benchmarks.routing.slo import Figures, Slo, figures
from benchmarks.routing.traces import Trace
from cluster.autoscaling.policy import Observation
from cluster.autoscaling.work_meter import WorkMeter
from engine.request import EngineLoad

_TICK_S = 5.0
_MAX_RUNNING = 256
"""Requests that a replica decodes together when it is full; memory is full before."""


@dataclass(frozen=True)
class ScalingSpec:
    """Bounds, and how long a replica takes to start."""

    cold_start_s: float = 60.0
    min_groups: int = 2
    max_groups: int = 16


class ScalingRun(NamedTuple):
    """What a scaler did."""

    figures: Figures
    replica_seconds: float
    """Of replicas that serve, start or drain, until the last request is done."""
    num_operations: int
    """Decisions that changed the number."""


def simulate_scaling(
    trace: Trace, spec: ServiceSpec, scaling: ScalingSpec, scaler: Scaler, num_start: int
) -> ScalingRun:
    """Return what became of the trace with `num_start` replicas at first and the scaler asked every 5 s."""
    loop = EventLoop()
    service = Service(spec, trace, loop)
    fleet = _Fleet(service, loop, scaling, scaler)
    fleet.begin(num_start)
    loop.run(lambda: service.num_open == 0)
    fleet.account()
    return ScalingRun(figures(service.outcomes, Slo()), fleet.replica_seconds, fleet.num_operations)


@dataclass
class _Fleet:
    """Starts and drains replicas of a service as the scaler says; mutable, driven by its own ticks."""

    service: Service
    loop: EventLoop
    scaling: ScalingSpec
    scaler: Scaler
    replica_seconds: float = 0.0
    num_operations: int = 0
    _num_starting: int = 0
    _num_cancelled: int = 0
    """Starts under way that nobody wants any more."""
    _draining: list[str] = field(default_factory=list)
    _accounted_s: float = 0.0
    _meters: dict[str, WorkMeter] = field(default_factory=dict)

    def begin(self, num_groups: int) -> None:
        """Start with warm replicas and the first tick."""
        for _ in range(num_groups):
            self.service.start()
        self._tick(0)

    def account(self) -> None:
        """Count the replica-seconds up to now."""
        num_held = len(self.service.ready) + self._num_starting + len(self._draining)
        self.replica_seconds += num_held * (self.loop.now_s - self._accounted_s)
        self._accounted_s = self.loop.now_s

    def _tick(self, _: int) -> None:
        self.account()
        self._remove_drained()
        num_groups = len(self.service.ready) + self._num_starting
        wanted = self.scaler.desired(self._state(num_groups))
        wanted = min(self.scaling.max_groups, max(self.scaling.min_groups, wanted))
        if wanted != num_groups:
            self.num_operations += 1
        for _ in range(wanted - num_groups):
            self._add()
        for _ in range(num_groups - wanted):
            self._drain_one()
        self.loop.at(self.loop.now_s + _TICK_S, self._tick)

    def _add(self) -> None:
        if self._draining:
            self.service.take_back(self._draining.pop())
            return
        self._num_starting += 1
        self.loop.at(self.loop.now_s + self.scaling.cold_start_s, self._started)

    def _started(self, _: int) -> None:
        self.account()
        if self._num_cancelled:
            self._num_cancelled -= 1
            return
        self._num_starting -= 1
        self.service.start()

    def _drain_one(self) -> None:
        """Give up a start under way, else drain the youngest: Serve's choice, and the one with the least to lose."""
        if self._num_starting:
            self._num_starting -= 1
            self._num_cancelled += 1
            return
        group_id = self.service.ready[-1]
        self.service.drain(group_id)
        self._draining.append(group_id)

    def _remove_drained(self) -> None:
        for group_id in list(self._draining):
            load = self.service.replica(group_id).load()
            if not load.num_running + load.num_waiting:
                self._draining.remove(group_id)
                self.service.remove(group_id)

    def _state(self, num_groups: int) -> FleetState:
        serving = {group_id: self.service.replica(group_id).load() for group_id in self.service.ready}
        draining = {group_id: self.service.replica(group_id).load() for group_id in self._draining}
        num_ready = max(1, len(serving))
        num_inside = sum(load.num_running + load.num_waiting for load in (*serving.values(), *draining.values()))
        used = [1 - (load.num_free_blocks + load.num_cached_blocks) / load.num_blocks for load in serving.values()]
        return FleetState(
            now_s=self.loop.now_s,
            num_groups=num_groups,
            num_starting=self._num_starting,
            num_ongoing=num_inside + self.service.num_held,
            waiting_per_group=sum(load.num_waiting for load in serving.values()) / num_ready,
            kv_used=sum(used) / num_ready,
            work=self._work(num_groups, serving | draining),
        )

    def _work(self, num_groups: int, loads: Mapping[str, EngineLoad]) -> Observation:
        """Return what Serve's controller would be told: the sums of what each group's meter says."""
        meters = {group_id: self._meters.get(group_id) or WorkMeter(_MAX_RUNNING) for group_id in loads}
        self._meters = meters
        works = [meters[group_id].measure(self.loop.now_s, load) for group_id, load in loads.items()]
        return Observation(
            num_groups,
            len(self._draining),
            *(sum(column) for column in zip(*works, strict=True)),
            num_held=self.service.num_held,
        )
