"""The cost policy: red if it ignores a term of the cost, or mistakes the limit."""

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.routing.base import GroupView, RoutingRequest
from cluster.routing.cost import WORK_WEIGHT, CostPolicy, predict
from core.errors import Overloaded
from engine.step_costs import StepCosts

COSTS = StepCosts(base_s=0.01, prefill_token_s=0.001, sequence_s=0.001, kv_token_s=1e-6)
REQUEST = RoutingRequest(1000, 100)


def group(group_id="a", **fields) -> GroupView:
    return GroupView(group_id, **{"step_costs": COSTS, "max_step_tokens": 1000, "max_kv_tokens": 100_000} | fields)


def cost_s(view: GroupView) -> float:
    (ttft_s,), (burden_s,) = predict([view], REQUEST)
    return ttft_s + burden_s


def pick(*groups: GroupView, request=REQUEST) -> str:
    return CostPolicy().pick(groups, request)


def test_the_first_token_of_an_idle_group_takes_the_prompt_and_its_steps():
    work_s = 1000 * 0.001 * (1 + 1000 / 120_000)
    ttft_s, burden_s = predict([group()], REQUEST)
    assert ttft_s == [pytest.approx(work_s + 2 * 0.01)]
    assert burden_s == [pytest.approx(WORK_WEIGHT * work_s + 100 * 1e-6 * 1000)]


def test_a_cached_prefix_wins_among_idle_groups():
    assert pick(group("a"), group("b", num_cached_tokens=640)) == "b"


def test_a_cached_prefix_is_worth_no_more_than_the_work_it_saves():
    assert pick(group("a"), group("b", num_cached_tokens=640, num_queued_tokens=1000)) == "b"
    assert pick(group("a"), group("b", num_cached_tokens=640, num_queued_tokens=5000)) == "a"


def test_a_faster_group_wins_over_a_shorter_queue():
    fast = StepCosts(base_s=0.01, prefill_token_s=0.0001, sequence_s=0.001, kv_token_s=1e-6)
    assert pick(group("a"), group("b", num_queued_tokens=2000, step_costs=fast)) == "b"


def test_a_group_without_free_memory_loses():
    assert pick(group("a", num_kv_tokens=99_500, num_running=1), group("b", num_queued_tokens=500)) == "b"


def test_a_stale_report_is_trusted_half():
    assert pick(group("a", is_stale=True), group("b", num_queued_tokens=100)) == "b"


def test_the_first_of_equals_is_picked():
    assert pick(group("a"), group("b")) == "a"


def test_jitter_spreads_what_would_herd():
    policy = CostPolicy(Random(1), jitter=0.3)
    picked = {policy.pick([group("a"), group("b", num_queued_tokens=100)], REQUEST) for _ in range(50)}
    assert picked == {"a", "b"}


def test_within_the_target_the_least_burden_wins_over_an_earlier_token():
    idle, warm = group("a"), group("b", num_cached_tokens=960, num_queued_tokens=7500)
    assert pick(idle, warm) == "a"
    assert pick(idle, warm, request=REQUEST._replace(ttft_target_s=10.0)) == "b"


def test_past_the_target_the_earliest_token_wins():
    late = REQUEST._replace(ttft_target_s=0.5)
    assert pick(group("a", num_cached_tokens=64, num_queued_tokens=200), group("b"), request=late) == "b"


def test_a_request_no_group_can_begin_in_time_is_refused_with_the_time_to_wait():
    groups = [group("a", num_queued_tokens=10_000), group("b", num_queued_tokens=20_000)]
    soonest_s = min(predict(groups, REQUEST).ttft_s)
    with pytest.raises(Overloaded, match="more than the limit of 5.0 s") as refusal:
        CostPolicy().pick(groups, REQUEST._replace(ttft_limit_s=5.0))
    assert refusal.value.retry_after_s == pytest.approx(soonest_s - 5.0)
    assert CostPolicy().pick(groups, REQUEST._replace(ttft_limit_s=soonest_s)) == "a"


views = st.builds(
    group,
    num_cached_tokens=st.integers(0, 999),
    num_queued_tokens=st.integers(0, 100_000),
    num_waiting=st.integers(0, 100),
    num_running=st.integers(0, 100),
    num_kv_tokens=st.integers(0, 200_000),
)


@settings(max_examples=60, deadline=None)
@given(views)
def test_more_of_anything_never_costs_less(view):
    assert cost_s(view) > 0
    for field in ("num_queued_tokens", "num_waiting", "num_running", "num_kv_tokens"):
        more = msgspec.structs.replace(view, **{field: msgspec.structs.asdict(view)[field] + 10})
        assert cost_s(more) >= cost_s(view)
