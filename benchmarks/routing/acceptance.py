"""What the router and the autoscaler must reach in the simulator, line by line."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from benchmarks.routing.faults import Killed, Slowed
from benchmarks.routing.policies import OURS
from benchmarks.routing.scaling import ScalingRun
from benchmarks.routing.slo import Figures

MIN_CAPACITY_RATIOS: Mapping[str, Mapping[str, float]] = {
    "mooncake_conversation": {"power-of-two": 2.2, "sglang": 2.2, "ray-prefix": 2.2, "dynamo": 1.15, "llm-d": 1.0},
    "mooncake_synthetic": {"power-of-two": 3.3, "sglang": 2.2, "ray-prefix": 2.2, "dynamo": 1.25, "llm-d": 1.1},
}
"""Our capacity over the others', at least."""

MAX_TTFT_RATIOS: Mapping[str, Mapping[str, float]] = {
    "mooncake_conversation": {"power-of-two": 0.40, "dynamo": 0.85, "llm-d": 0.95},
    "mooncake_synthetic": {"dynamo": 0.65, "llm-d, events only": 0.80},
}
"""Our mean TTFT over the others' at 85 % of our capacity, at most."""


class Line(NamedTuple):
    """One figure and what it has to be."""

    what: str
    figure: float
    bound: Literal["at least", "at most"]
    target: float

    @property
    def is_met(self) -> bool:
        """Whether the figure is on the right side of its target; on it counts."""
        return self.figure >= self.target if self.bound == "at least" else self.figure <= self.target


def capacity_lines(trace: str, capacities: Mapping[str, float]) -> list[Line]:
    """Judge the capacities of all policies on one trace."""
    return [
        Line(f"{trace}: capacity over {rival}", capacities[OURS] / capacities[rival], "at least", target)
        for rival, target in MIN_CAPACITY_RATIOS[trace].items()
    ]


def worst_capacity_line(capacities: Mapping[str, Mapping[str, float]]) -> Line:
    """Judge the trace on which we are worst beside the best of the others."""
    ratios = {
        trace: of_policy[OURS] / max(rate for policy, rate in of_policy.items() if policy != OURS)
        for trace, of_policy in capacities.items()
    }
    worst = min(ratios, key=lambda trace: ratios[trace])
    return Line(f"worst trace ({worst}): capacity over the best other", ratios[worst], "at least", 0.95)


def ttft_lines(trace: str, runs: Mapping[str, Figures]) -> list[Line]:
    """Judge mean TTFTs of all policies on one trace at one rate."""
    return [
        Line(f"{trace}: mean TTFT over {rival}", runs[OURS].ttft_mean_s / runs[rival].ttft_mean_s, "at most", target)
        for rival, target in MAX_TTFT_RATIOS[trace].items()
    ]


def copies_lines(one: Figures, with_gossip: Figures, without_gossip: Figures) -> list[Line]:
    """Judge what sixteen routers lose against one, in points of SLO attainment."""
    return [
        Line("16 routers, gossip: points lost", 100 * (one.attainment - with_gossip.attainment), "at most", 2.0),
        Line(
            "16 routers, 1 s reports, jitter: points lost",
            100 * (one.attainment - without_gossip.attainment),
            "at most",
            10.0,
        ),
    ]


def fault_lines(slowed: Slowed, killed: Killed) -> list[Line]:
    """Judge what a slow and a killed replica do."""
    return [
        Line("one replica at half speed: mean TTFT over healthy", slowed.ratio, "at most", 1.10),
        Line("killed replica: requests failed", killed.num_failed, "at most", 0),
        Line(
            "killed replica: p99 TTFT 5 s later over undisturbed",
            killed.p99_after_s / killed.p99_before_s,
            "at most",
            1.1,
        ),
    ]


def scaling_lines(ours: ScalingRun, ongoing: ScalingRun) -> list[Line]:
    """Judge our scaler beside Serve's with a target of 16."""
    return [
        Line("scaling: SLO attainment", ours.figures.attainment, "at least", 0.99),
        Line(
            "scaling: replica-seconds over ongoing-16", ours.replica_seconds / ongoing.replica_seconds, "at most", 0.65
        ),
        Line("scaling: operations in 30 min", ours.num_operations, "at most", 12),
    ]


def as_table(lines: Sequence[Line]) -> str:
    """Return one row a line: figure, target, met or not."""
    width = max(len(line.what) for line in lines)
    rows = [
        f"{line.what:{width}}  {line.figure:7.3f}  {line.bound:8}  {line.target:6.2f}  {verdict}"
        for line in lines
        for verdict in ["met" if line.is_met else "NOT MET"]
    ]
    num_met = sum(line.is_met for line in lines)
    return "\n".join([*rows, f"{num_met} of {len(lines)} met"])
