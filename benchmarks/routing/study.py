"""The experiments behind the tables. Each is a function of its arguments alone, so that any core can run it."""

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from benchmarks.routing.capacity import capacity
from benchmarks.routing.faults import Killed, KillPlan, Slowed, killed_replicas, slow_replica
from benchmarks.routing.policies import ROUTERS
from benchmarks.routing.replica import ReplicaSpec
from benchmarks.routing.scalers import Fixed, OngoingRequests, Saturation, Scaler, TokenWork
from benchmarks.routing.scaling import ScalingRun, ScalingSpec, simulate_scaling
from benchmarks.routing.service import ServiceSpec
from benchmarks.routing.simulation import simulate, sustains
from benchmarks.routing.slo import Figures
from benchmarks.routing.traces import READERS, Trace
from cluster.autoscaling.policy import ScalingConfig

ATTAINMENT = 0.9
"""Share of the requests that must meet the SLO for a rate to count as sustained."""

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")
Experiment = Callable[[], Result]


@dataclass(frozen=True)
class Scenario:
    """A trace and a fleet; small, for it travels between processes."""

    folder: Path
    trace: str
    num_replicas: int = 8
    max_arrivals: int | None = None
    """Of a long trace, its beginning."""

    def read(self) -> Trace:
        """Return the trace, which a process reads once."""
        trace = _read(self.folder, self.trace)
        return trace if self.max_arrivals is None else trace.first(self.max_arrivals)


GUESSES: Mapping[str, float] = {
    "mooncake_conversation": 0.5,
    "mooncake_synthetic": 0.4,
    "hot_prefixes": 3.2,
    "servegen_r1": 0.6,
    "azure_conversation": 4.6,
    "azure_code": 0.6,
}
"""About the requests per second that a replica sustains behind a good router."""

GUESSED_SHARES: Mapping[str, float] = {
    "least-requests": 0.6,
    "power-of-two": 0.4,
    "random": 0.4,
    "ray-prefix": 0.3,
    "round-robin": 0.4,
    "sglang": 0.35,
}
"""What others make of it on the Mooncake traces. A bad guess costs time; it changes the capacity only of policies that
draw at random, with which a higher rate is by luck not always harder."""


def run_all(experiments: Mapping[Name, Experiment[Result]], num_processes: int) -> dict[Name, Result]:
    """Return each experiment's result under its name; uses so many processes, none but this one for 1."""
    if num_processes == 1:
        return {name: experiment() for name, experiment in experiments.items()}
    with ProcessPoolExecutor(num_processes) as pool:
        futures = {name: pool.submit(experiment) for name, experiment in experiments.items()}
        return {name: future.result() for name, future in futures.items()}


def find_capacity(scenario: Scenario, router: str) -> float:
    """Return the largest rate at which the router keeps the SLO."""
    trace = scenario.read()

    def is_sustained(rate_per_s: float) -> bool:
        spec = ServiceSpec(ROUTERS[router])
        return sustains(trace.at_rate(rate_per_s), spec, scenario.num_replicas, ATTAINMENT)

    share = GUESSED_SHARES.get(router, 1.0) if scenario.trace.startswith("mooncake") else 1.0
    return capacity(is_sustained, share * GUESSES[scenario.trace] * scenario.num_replicas)


@dataclass(frozen=True)
class Knowledge:
    """How many routers there are and how they learn."""

    num_gateways: int = 1
    report_period_s: float = 0.0
    gossip_s: float | None = None
    sees_prefills: bool = False
    """Whether reports tell of prompts under way what engines do not tell."""


def measure(scenario: Scenario, router: str, rate_per_s: float, knowledge: Knowledge = Knowledge()) -> Figures:
    """Return the figures of one run."""
    return simulate(scenario.read().at_rate(rate_per_s), _spec(router, knowledge), scenario.num_replicas).figures


def measure_slow_replica(scenario: Scenario, router: str, rate_per_s: float, knowledge: Knowledge) -> Slowed:
    """Return what a replica at half speed does."""
    return slow_replica(scenario.read().at_rate(rate_per_s), _spec(router, knowledge), scenario.num_replicas)


def measure_kills(scenario: Scenario, router: str, rate_per_s: float, knowledge: Knowledge, num_kills: int) -> Killed:
    """Return what kills do that are spread over the second half of the trace."""
    trace = scenario.read().at_rate(rate_per_s)
    half_s = trace.span_s / 2
    moments_s = [half_s * (1 + kill / num_kills) for kill in range(num_kills)]
    return killed_replicas(trace, _spec(router, knowledge), scenario.num_replicas, moments_s, KillPlan())


SCALING = ScalingSpec()
SCALERS: Mapping[str, tuple[Callable[[], Scaler], int]] = {
    "fixed_16": (lambda: Fixed(16), 16),
    "fixed_8": (lambda: Fixed(8), 8),
    "ongoing_2": (partial(OngoingRequests, 2.0), 2),
    "ongoing_16": (partial(OngoingRequests, 16.0), 2),
    "saturation": (Saturation, 2),
    "token_work": (lambda: TokenWork(ScalingConfig(), SCALING.min_groups, SCALING.max_groups), 2),
}
"""How each is made, and the replicas that stand at the start."""


@dataclass(frozen=True)
class ScalingScenario:
    """A trace laid over itself until a fleet of 16 has work, and the time a replica takes to start."""

    folder: Path
    trace: str
    num_copies: int
    cold_start_s: float


def measure_scaling(scenario: ScalingScenario, router: str, scaler: str) -> ScalingRun:
    """Return what the scaler did with the trace."""
    trace = _read(scenario.folder, scenario.trace)
    if scenario.num_copies > 1:
        trace = trace.superposed(scenario.num_copies, seed=1)
    make_scaler, num_start = SCALERS[scaler]
    scaling = ScalingSpec(scenario.cold_start_s, SCALING.min_groups, SCALING.max_groups)
    return simulate_scaling(trace, ServiceSpec(ROUTERS[router]), scaling, make_scaler(), num_start)


def _spec(router: str, knowledge: Knowledge) -> ServiceSpec:
    return ServiceSpec(
        ROUTERS[router],
        ReplicaSpec(tells_prefills=knowledge.sees_prefills),
        num_gateways=knowledge.num_gateways,
        report_period_s=knowledge.report_period_s,
        gossip_s=knowledge.gossip_s,
    )


@cache
def _read(folder: Path, name: str) -> Trace:
    return READERS[name](folder)
