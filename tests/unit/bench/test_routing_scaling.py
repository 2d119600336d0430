import pytest

from benchmarks.routing.acceptance import MIN_CAPACITY_RATIOS, Line, as_table, capacity_lines, worst_capacity_line
from benchmarks.routing.policies import OURS, ROUTERS
from benchmarks.routing.scalers import Fixed, FleetState, OngoingRequests, Saturation, TokenWork
from benchmarks.routing.scaling import ScalingSpec, simulate_scaling
from benchmarks.routing.service import ServiceSpec
from benchmarks.routing.study import run_all
from benchmarks.routing.traces import Arrival, Trace
from cluster.autoscaling.policy import Observation, ScalingConfig

SPEC = ServiceSpec(ROUTERS["least-tokens"])
NO_WORK = Observation(num_groups=1)


class OneLess:
    """Two replicas for 5 s, then one."""

    def desired(self, state: FleetState) -> int:
        return 2 if state.now_s < 5 else 1


def state(
    now_s: float, num_groups: int, num_ongoing: int = 0, kv_used: float = 0.0, num_starting: int = 0
) -> FleetState:
    return FleetState(now_s, num_groups, num_starting, num_ongoing, 0.0, kv_used, NO_WORK)


def a_rush(num_requests: int, start_s: float, gap_s: float) -> list[Arrival]:
    return [Arrival(start_s + gap_s * index, 6000, 20) for index in range(num_requests)]


def made_up(*parts: list[Arrival]) -> Trace:
    arrivals = tuple(arrival for part in parts for arrival in part)
    return Trace("made up", arrivals[-1].at_s, arrivals)


def test_fleet_that_stays_the_same_costs_its_size_times_the_time():
    run = simulate_scaling(made_up(a_rush(100, 0.0, 1.0)), SPEC, ScalingSpec(), Fixed(4), num_start=4)
    assert run.num_operations == 0
    assert run.replica_seconds == pytest.approx(4 * 100, rel=0.02)


def test_new_replica_serves_only_after_its_cold_start():
    rush = made_up(a_rush(200, 0.0, 0.5))

    def missed(cold_start_s: float) -> float:
        spec = ScalingSpec(cold_start_s, min_groups=1, max_groups=4)
        return 1 - simulate_scaling(rush, SPEC, spec, Fixed(4), num_start=1).figures.attainment

    assert missed(1.0) < missed(20.0) < missed(60.0)


def test_replica_that_drains_finishes_what_it_has():
    trace = made_up([Arrival(0.0, 100, 2000)], [Arrival(1.0, 100, 2000)], a_rush(20, 10.0, 10.0))
    run = simulate_scaling(trace, SPEC, ScalingSpec(min_groups=1), OneLess(), num_start=2)
    assert run.figures.num_failed == 0
    assert 200 + 30 < run.replica_seconds < 200 + 45, "one replica all the time, the other for 2000 steps"


def test_token_work_scales_up_for_a_rush_and_down_after_it():
    trace = made_up(a_rush(600, 0.0, 0.2), a_rush(200, 120.0, 10.0))
    scaler = TokenWork(ScalingConfig(), 1, 16)
    run = simulate_scaling(trace, SPEC, ScalingSpec(20.0, min_groups=1), scaler, num_start=1)
    assert run.num_operations >= 4
    assert run.replica_seconds < 2120 * 3, "few replicas once the rush is over"


def test_ongoing_requests_act_only_after_their_delay():
    scaler = OngoingRequests(target=2.0)
    assert scaler.desired(state(0.0, 1, num_ongoing=12)) == 1
    assert scaler.desired(state(25.0, 1, num_ongoing=12)) == 1
    assert scaler.desired(state(30.0, 1, num_ongoing=12)) == 6


def test_ongoing_requests_start_over_when_the_direction_changes():
    scaler = OngoingRequests(target=2.0, look_back_s=0.0, down_after_s=100.0)
    for now_s, num_ongoing in [(0.0, 0), (90.0, 8), (110.0, 0)]:
        assert scaler.desired(state(now_s, 4, num_ongoing)) == 4
    assert scaler.desired(state(210.0, 4, 0)) == 1


def test_saturation_adds_one_at_a_time_and_takes_one_after_calm():
    scaler = Saturation()
    assert scaler.desired(state(0.0, 4, kv_used=0.8)) == 5
    assert scaler.desired(state(5.0, 5, kv_used=0.8, num_starting=1)) == 5
    assert scaler.desired(state(10.0, 5, kv_used=0.1)) == 5
    assert scaler.desired(state(130.0, 5, kv_used=0.1)) == 4


def test_line_on_its_target_is_met():
    assert Line("more", 2.0, "at least", 2.0).is_met and not Line("more", 1.9, "at least", 2.0).is_met
    assert Line("less", 2.0, "at most", 2.0).is_met and not Line("less", 2.1, "at most", 2.0).is_met
    table = as_table([Line("more", 1.9, "at least", 2.0), Line("less", 1.0, "at most", 2.0)])
    assert "NOT MET" in table and table.endswith("1 of 2 met")


def test_capacities_are_judged_by_their_ratio_to_ours():
    trace = "mooncake_synthetic"
    capacities = {OURS: 3.3, **dict.fromkeys(MIN_CAPACITY_RATIOS[trace], 1.0)}
    assert all(line.is_met for line in capacity_lines(trace, capacities))
    line = worst_capacity_line({"a": {OURS: 1.0, "x": 0.5}, "b": {OURS: 1.0, "x": 1.25, "y": 0.1}})
    assert line.what.startswith("worst trace (b)") and line.figure == pytest.approx(0.8) and not line.is_met


def test_experiments_keep_their_names_in_any_number_of_processes():
    assert run_all({"a": int, "b": str}, num_processes=1) == run_all({"a": int, "b": str}, num_processes=2)
