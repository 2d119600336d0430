"""What is run for the tables: little for the acceptance figures alone, all of it for the page of results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.routing.acceptance import (
    MAX_TTFT_RATIOS,
    MIN_CAPACITY_RATIOS,
    Line,
    capacity_lines,
    copies_lines,
    fault_lines,
    scaling_lines,
    ttft_lines,
    worst_capacity_line,
)
from benchmarks.routing.faults import Killed, Slowed
from benchmarks.routing.policies import OURS, ROUTERS
from benchmarks.routing.scaling import ScalingRun
from benchmarks.routing.slo import Figures
from benchmarks.routing.study import (
    SCALERS,
    Knowledge,
    ScalingScenario,
    Scenario,
    find_capacity,
    measure,
    measure_kills,
    measure_scaling,
    measure_slow_replica,
    run_all,
)
from cluster.routing.policies import POLICIES

CONVERSATION, SYNTHETIC = "mooncake_conversation", "mooncake_synthetic"

LOAD = 0.85
"""Share of our capacity at which latencies are compared."""

FAULT_LOAD = 0.6
"""Of our capacity while a replica is slow or dead: what is left must be able to carry the rest."""

NUM_KILLS = 5

LIVE = Knowledge(report_period_s=0.1)
"""What one gateway knows in service."""

COPIES: Mapping[str, tuple[str, Knowledge]] = {
    "1, reports 100 ms": (OURS, LIVE),
    "1, reports 1 s": (OURS, Knowledge(report_period_s=1.0)),
    "16, reports 100 ms": (OURS, Knowledge(16, 0.1)),
    "16, reports 1 s": (OURS, Knowledge(16, 1.0)),
    "16, reports 1 s, jitter": ("cost, jitter", Knowledge(16, 1.0)),
    "16, reports 1 s, gossip 20 ms": (OURS, Knowledge(16, 1.0, 0.02)),
    "16, reports 1 s, gossip 200 ms": (OURS, Knowledge(16, 1.0, 0.2)),
    "16, reports 100 ms, gossip 20 ms": (OURS, Knowledge(16, 0.1, 0.02)),
}
"""How many routers, and how they learn of each other."""

ALL_TRACES: Mapping[str, tuple[int, int | None]] = {
    CONVERSATION: (8, None),
    SYNTHETIC: (8, None),
    "hot_prefixes": (8, 3000),
    "servegen_r1": (8, 3000),
    "azure_conversation": (4, 3000),
    "azure_code": (4, 3000),
}
"""Replicas for each, and how many requests of it are replayed."""


@dataclass(frozen=True)
class Plan:
    """Where the traces are, and how much to run."""

    folder: Path
    num_processes: int
    is_quick: bool

    @property
    def capacity_traces(self) -> Sequence[str]:
        """Traces on which capacities are compared."""
        return [CONVERSATION, SYNTHETIC] if self.is_quick else list(ALL_TRACES)

    @property
    def rivals(self) -> Sequence[str]:
        """Policies whose capacity is found, ours among them."""
        return [*MIN_CAPACITY_RATIOS[CONVERSATION], OURS] if self.is_quick else list(POLICIES)

    def scenario(self, trace: str) -> Scenario:
        """Return the trace with the fleet it is replayed on."""
        return Scenario(self.folder, trace, *ALL_TRACES[trace])


@dataclass
class Results:
    """What was found, by the names of traces, routers and scalers."""

    capacities: dict[str, dict[str, float]] = field(default_factory=dict)
    rates_per_s: dict[str, float] = field(default_factory=dict)
    """At which latencies were compared."""
    runs: dict[str, dict[str, Figures]] = field(default_factory=dict)
    copies: dict[str, Figures] = field(default_factory=dict)
    slowed: Slowed | None = None
    killed: Killed | None = None
    scaling: dict[str, dict[str, ScalingRun]] = field(default_factory=dict)

    def lines(self) -> list[Line]:
        """Return the acceptance figures."""
        assert self.slowed is not None and self.killed is not None
        lines = [line for trace in MIN_CAPACITY_RATIOS for line in capacity_lines(trace, self.capacities[trace])]
        lines += [line for trace in MAX_TTFT_RATIOS for line in ttft_lines(trace, self.runs[trace])]
        if len(self.capacities) == len(ALL_TRACES):
            lines.append(worst_capacity_line(self.capacities))
        lines += copies_lines(
            self.copies["1, reports 100 ms"],
            self.copies["16, reports 1 s, gossip 20 ms"],
            self.copies["16, reports 1 s, jitter"],
        )
        lines += fault_lines(self.slowed, self.killed)
        scaling = self.scaling["servegen_m_large x3, cold start 60 s"]
        return lines + scaling_lines(scaling["token_work"], scaling["ongoing_16"])


def carry_out(plan: Plan) -> Results:
    """Run everything of the plan; takes minutes."""
    results = Results()
    _find_capacities(plan, results)
    results.rates_per_s = {trace: LOAD * results.capacities[trace][OURS] for trace in (CONVERSATION, SYNTHETIC)}
    _compare_latencies(plan, results)
    _compare_copies(plan, results)
    _break_replicas(plan, results)
    _scale(plan, results)
    return results


def _find_capacities(plan: Plan, results: Results) -> None:
    found = run_all(
        {
            (trace, router): partial(find_capacity, plan.scenario(trace), router)
            for trace in plan.capacity_traces
            for router in plan.rivals
        },
        plan.num_processes,
    )
    for (trace, router), rate_per_s in found.items():
        results.capacities.setdefault(trace, {})[router] = rate_per_s


def _compare_latencies(plan: Plan, results: Results) -> None:
    runs = run_all(
        {
            (trace, router): partial(measure, plan.scenario(trace), router, rate_per_s)
            for trace, rate_per_s in results.rates_per_s.items()
            for router in ([*MAX_TTFT_RATIOS[trace], OURS] if plan.is_quick else ROUTERS)
        },
        plan.num_processes,
    )
    for (trace, router), figures in runs.items():
        results.runs.setdefault(trace, {})[router] = figures
    for trace, rate_per_s in results.rates_per_s.items():
        # The strongest of the others, were it told more than it is.
        figures = measure(plan.scenario(trace), "llm-d", rate_per_s, Knowledge(sees_prefills=True))
        results.runs[trace]["llm-d, sees prefills"] = figures


def _compare_copies(plan: Plan, results: Results) -> None:
    needed = ("1, reports 100 ms", "16, reports 1 s, gossip 20 ms", "16, reports 1 s, jitter")
    rate_per_s = results.rates_per_s[CONVERSATION]
    results.copies = run_all(
        {
            name: partial(measure, plan.scenario(CONVERSATION), router, rate_per_s, knowledge)
            for name, (router, knowledge) in COPIES.items()
            if name in needed or not plan.is_quick
        },
        plan.num_processes,
    )


def _break_replicas(plan: Plan, results: Results) -> None:
    scenario, rate_per_s = plan.scenario(CONVERSATION), FAULT_LOAD * results.capacities[CONVERSATION][OURS]
    results.slowed = run_all(
        {"slowed": partial(measure_slow_replica, scenario, OURS, rate_per_s, LIVE)}, num_processes=1
    )["slowed"]
    results.killed = run_all(
        {"killed": partial(measure_kills, scenario, OURS, rate_per_s, LIVE, NUM_KILLS)}, num_processes=1
    )["killed"]


def _scale(plan: Plan, results: Results) -> None:
    scenarios = [ScalingScenario(plan.folder, "servegen_m_large", 3, 60.0)]
    if not plan.is_quick:
        scenarios += [
            ScalingScenario(plan.folder, "servegen_m_large", 3, 180.0),
            ScalingScenario(plan.folder, "azure_code", 3, 60.0),
            ScalingScenario(plan.folder, CONVERSATION, 1, 60.0),
        ]
    runs = run_all(
        {
            (scenario, scaler): partial(measure_scaling, scenario, OURS, scaler)
            for scenario in scenarios
            for scaler in (["ongoing_16", "token_work"] if plan.is_quick else SCALERS)
        },
        plan.num_processes,
    )
    for (scenario, scaler), run in runs.items():
        name = f"{scenario.trace} x{scenario.num_copies}, cold start {scenario.cold_start_s:.0f} s"
        results.scaling.setdefault(name, {})[scaler] = run
