"""One run: a trace through a service with a fixed number of replicas."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.routing.events import EventLoop
from benchmarks.routing.service import Service, ServiceSpec
from benchmarks.routing.slo import Figures, MissCounter, Outcome, Slo, figures
from benchmarks.routing.traces import Trace

_NUM_SAMPLES = 200
"""Of the imbalance, over a run."""


class Run(NamedTuple):
    """A finished run: its figures, and each request's fate in the order of the trace."""

    figures: Figures
    outcomes: Sequence[Outcome]


class Event(NamedTuple):
    """Something that happens to the service during a run."""

    at_s: float
    happen: Callable[[Service], object]


def simulate(
    trace: Trace,
    spec: ServiceSpec,
    num_replicas: int = 8,
    *,
    speeds: Sequence[float] = (),
    events: Sequence[Event] = (),
    slo: Slo | None = None,
) -> Run:
    """Return what became of the trace. `speeds` are those of the first replicas, the others' is 1."""
    loop = EventLoop()
    service = Service(spec, trace, loop)
    for index in range(num_replicas):
        service.start(speeds[index] if index < len(speeds) else 1.0)
    for event in events:
        loop.at(event.at_s, lambda _, event=event: event.happen(service))
    imbalance = _Imbalance(service, loop, trace.span_s / _NUM_SAMPLES)
    loop.run(lambda: service.num_open == 0)
    return Run(figures(service.outcomes, slo or Slo(), imbalance.mean), service.outcomes)


def sustains(trace: Trace, spec: ServiceSpec, num_replicas: int, attainment: float, slo: Slo | None = None) -> bool:
    """Whether that share of the requests meets the SLO; stops as soon as the answer is no."""
    loop = EventLoop()
    service = Service(spec, trace, loop)
    for _ in range(num_replicas):
        service.start()
    missed = MissCounter(slo or Slo(), attainment, len(trace.arrivals))
    service.on_closed = missed.note
    loop.run(lambda: service.num_open == 0 or missed.is_lost)
    return not missed.is_lost


class _Imbalance:
    """Samples the work on the busiest replica over the mean."""

    def __init__(self, service: Service, loop: EventLoop, period_s: float) -> None:
        self._service = service
        self._loop = loop
        self._period_s = period_s
        self._ratios: list[float] = []
        self._sample(0)

    @property
    def mean(self) -> float:
        """Over the samples that found any work."""
        return sum(self._ratios) / len(self._ratios) if self._ratios else 1.0

    def _sample(self, _: int) -> None:
        loads = [self._service.replica(group_id).load() for group_id in self._service.ready]
        work = [load.num_uncached_tokens + load.num_kv_tokens for load in loads]
        if sum(work):
            self._ratios.append(max(work) * len(work) / sum(work))
        self._loop.at(self._loop.now_s + self._period_s, self._sample)
