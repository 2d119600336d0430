"""Load reports of a group become groups' worth of work, and the sums of all groups an observation."""

from types import SimpleNamespace

import pytest

from cluster.autoscaling.policy import Observation
from cluster.autoscaling.serve_policy import TokenWorkPolicy, observe
from cluster.autoscaling.work_meter import GroupWork, WorkMeter
from core.errors import InvalidConfig
from engine.request import EngineLoad
from engine.step_costs import StepCosts

COSTS = StepCosts(base_s=0.01, prefill_token_s=0.001, sequence_s=0.001, kv_token_s=0.0)


def load(**changes):
    fields = dict.fromkeys(EngineLoad.__struct_fields__, 0)
    return EngineLoad(**(fields | {"step_costs": COSTS, "max_kv_tokens": 1000, "max_step_tokens": 10**9} | changes))


def test_uncached_prompts_that_arrive_are_prefill_load():
    meter = WorkMeter(max_running=10)
    meter.measure(0.0, load())
    # In 10 s: 3000 tokens began, 1000 of them cached, and 500 wait. One group does 1000 in a second.
    work = meter.measure(10.0, load(num_prompt_tokens=3000, num_cached_prompt_tokens=1000, num_uncached_tokens=500))
    assert work.prefill_load == pytest.approx(0.25)


def test_a_step_of_prompts_has_its_fixed_cost_too():
    meter = WorkMeter(max_running=10)
    meter.measure(0.0, load())
    work = meter.measure(10.0, load(num_prompt_tokens=2500, max_step_tokens=100))
    assert work.prefill_load == pytest.approx(250 * 0.001 + 2.5 * 0.01)


def test_a_single_stream_is_a_small_part_of_what_a_full_group_decodes():
    meter = WorkMeter(max_running=10)
    meter.measure(0.0, load())
    work = meter.measure(10.0, load(num_generated_tokens=900, num_running=1))
    assert work.decode_load == pytest.approx(90 * (0.01 / 10 + 0.001))


def test_kv_blocks_bound_what_counts_as_full():
    meter = WorkMeter(max_running=10)
    meter.measure(0.0, load())
    work = meter.measure(10.0, load(num_generated_tokens=900, num_running=1, num_kv_tokens=500))
    assert work.decode_load == pytest.approx(90 * (0.01 / 2 + 0.001))
    assert work.resident == 0.5


def test_a_burst_counts_at_once_and_is_forgotten_after_a_minute():
    meter = WorkMeter(max_running=10)
    for second in range(60):
        meter.measure(second, load())
    assert meter.measure(60.0, load(num_prompt_tokens=15000)).prefill_load == pytest.approx(1.0)
    loads = [meter.measure(second, load(num_prompt_tokens=15000)).prefill_load for second in range(61, 130)]
    assert loads[20] == pytest.approx(0.25)
    assert loads[-1] == 0.0


def test_a_restarted_engine_is_measured_from_its_start():
    meter = WorkMeter(max_running=10)
    meter.measure(0.0, load(num_prompt_tokens=9000, num_generated_tokens=900))
    assert meter.measure(1.0, load()) == GroupWork()
    assert meter.measure(2.0, load(num_prompt_tokens=100)).prefill_load == pytest.approx(0.1)


def test_nothing_is_claimed_before_costs_are_known():
    meter = WorkMeter(max_running=10)
    meter.measure(0.0, load(step_costs=None))
    assert meter.measure(1.0, load(step_costs=None, num_prompt_tokens=100, wait_s=3.0)) == GroupWork()


def series(*values):
    return [SimpleNamespace(value=value) for value in values]


def context(num_replicas=2, held=0, metrics=None):
    return SimpleNamespace(
        current_num_replicas=num_replicas,
        target_num_replicas=num_replicas,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=4,
        raw_metrics=metrics or {},
        total_num_requests=held,
    )


def test_the_latest_reports_of_all_replicas_are_added_up():
    metrics = {"prefill_load": {"a": series(0.9, 0.5), "b": series(0.25)}, "backlog_s": {"a": series(3), "b": []}}
    assert observe(context(metrics=metrics)) == Observation(2, prefill_load=0.75, backlog_s=3)


def test_serve_gets_a_number_within_its_bounds():
    metrics = {"prefill_load": {"a": series(9.0), "b": series(9.0)}}
    assert TokenWorkPolicy(target_load=0.5)(context(metrics=metrics)) == (4, {})


def test_requests_at_serve_handles_wake_a_model_that_has_no_replica():
    assert TokenWorkPolicy(to_zero_after_s=600)(context(num_replicas=0, held=1)) == (1, {})


def test_unknown_settings_are_refused_with_their_name():
    with pytest.raises(InvalidConfig, match="target_laod"):
        TokenWorkPolicy(target_laod=0.5)
