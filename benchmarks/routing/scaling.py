"""A run in which replicas come and go: what a scaler costs in replica-seconds, and what callers get for it."""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.routing.events import EventLoop
from benchmarks.routing.replica import ReplicaSpec
from benchmarks.routing.scalers import FleetState, Scaler
from benchmarks.routing.service import Service, ServiceSpec
from benchmarks.routing.slo import Figures, Slo, figures
from benchmarks.routing.traces import Trace
from cluster.autoscaling.policy import Observation
from engine.request import EngineLoad

_TICK_S = 5.0
_WINDOWS_S = (15.0, 60.0)
"""Arrival rates are taken over both, and the higher one counts: quick to rise, slow to fall."""


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
    fleet = _Fleet(service, loop, scaling, scaler, _DecodeRate.of(spec.replica, trace).tokens_per_s, spec.replica)
    fleet.begin(num_start)
    loop.run(lambda: service.num_open == 0)
    fleet.account()
    return ScalingRun(figures(service.outcomes, Slo()), fleet.replica_seconds, fleet.num_operations)


class _DecodeRate(NamedTuple):
    """How fast a replica decodes when its memory is full."""

    tokens_per_s: float

    @classmethod
    def of(cls, replica: ReplicaSpec, trace: Trace) -> "_DecodeRate":
        """Return the rate for requests of the trace's mean length."""
        mean_prompt = sum(arrival.num_prompt_tokens for arrival in trace.arrivals) / len(trace.arrivals)
        num_sequences = replica.kv_tokens / (mean_prompt + trace.mean_output_tokens / 2)
        step_s = replica.base_s + replica.sequence_s * num_sequences + replica.kv_token_s * replica.kv_tokens
        return cls(num_sequences / step_s)


@dataclass
class _Fleet:
    """Starts and drains replicas of a service as the scaler says; mutable, driven by its own ticks."""

    service: Service
    loop: EventLoop
    scaling: ScalingSpec
    scaler: Scaler
    decode_tokens_per_s: float
    replica: ReplicaSpec
    replica_seconds: float = 0.0
    num_operations: int = 0
    _num_starting: int = 0
    _num_cancelled: int = 0
    """Starts under way that nobody wants any more."""
    _draining: list[str] = field(default_factory=list)
    _accounted_s: float = 0.0
    _totals: deque[tuple[float, int, int]] = field(default_factory=deque)
    """Time, uncached prompt tokens placed so far, output tokens so far."""

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
        """Give up a start under way, else drain the replica with the least work and the least to lose."""
        if self._num_starting:
            self._num_starting -= 1
            self._num_cancelled += 1
            return
        group_id = min(self.service.ready, key=self._value)
        self.service.drain(group_id)
        self._draining.append(group_id)

    def _value(self, group_id: str) -> tuple[int, int]:
        load = self.service.replica(group_id).load()
        return load.num_running + load.num_waiting, load.num_cached_blocks

    def _remove_drained(self) -> None:
        for group_id in list(self._draining):
            load = self.service.replica(group_id).load()
            if not load.num_running + load.num_waiting:
                self._draining.remove(group_id)
                self.service.remove(group_id)

    def _state(self, num_groups: int) -> FleetState:
        loads = [self.service.replica(group_id).load() for group_id in self.service.ready]
        num_ready = max(1, len(loads))
        num_waiting = sum(load.num_waiting for load in loads)
        draining = [self.service.replica(group_id).load() for group_id in self._draining]
        num_inside = sum(load.num_running + load.num_waiting for load in (*loads, *draining))
        num_used = sum(load.num_blocks - load.num_free_blocks - load.num_cached_blocks for load in loads)
        return FleetState(
            now_s=self.loop.now_s,
            num_groups=num_groups,
            num_starting=self._num_starting,
            num_ongoing=num_inside + self.service.num_held,
            waiting_per_group=num_waiting / num_ready,
            kv_used=num_used / (num_ready * self.replica.num_blocks),
            work=self._work(num_groups, loads),
        )

    def _work(self, num_groups: int, loads: list[EngineLoad]) -> Observation:
        prefill_rate, decode_rate = self._rates()
        speed = self.replica.prefill_tokens_per_s
        return Observation(
            num_groups=num_groups,
            num_draining=len(self._draining),
            prefill_load=prefill_rate / speed,
            decode_load=decode_rate / self.decode_tokens_per_s,
            backlog_s=sum(load.num_uncached_tokens for load in loads) / speed,
            resident=sum(load.num_kv_tokens for load in loads) / self.replica.kv_tokens,
            num_held=self.service.num_held,
        )

    def _rates(self) -> tuple[float, float]:
        """Return uncached prompt tokens and output tokens per second."""
        now_s = self.loop.now_s
        self._totals.append((now_s, self.service.num_uncached_placed, self.service.num_generated))
        while self._totals[0][0] < now_s - _WINDOWS_S[-1]:
            self._totals.popleft()
        return self._rate(1), self._rate(2)

    def _rate(self, column: int) -> float:
        now_s, newest = self._totals[-1][0], self._totals[-1]
        rates = [0.0]
        for window_s in _WINDOWS_S:
            oldest = next(row for row in self._totals if row[0] >= now_s - window_s)
            if newest[0] > oldest[0]:
                rates.append((newest[column] - oldest[column]) / (newest[0] - oldest[0]))
        return max(rates)
