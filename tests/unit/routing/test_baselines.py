"""Other routers' choices: red if one is not what its source says, for then a comparison with ours is worth nothing."""

from random import Random

import pytest

from cluster.routing.base import GroupView, RoutingRequest
from cluster.routing.baselines.dynamo import DynamoLinear
from cluster.routing.baselines.least_outstanding import LeastRequests
from cluster.routing.baselines.llm_d import LlmD
from cluster.routing.baselines.power_of_two import PowerOfTwo
from cluster.routing.baselines.ray_prefix import RayPrefix
from cluster.routing.baselines.round_robin import RoundRobin
from cluster.routing.baselines.sglang import SGLangCacheAware
from cluster.routing.policies import POLICIES

REQUEST = RoutingRequest(1000, 100, prefix_keys=range(15))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_picks_one_of_its_groups_and_alike_with_equal_generators(name):
    groups = [GroupView(f"g{index}", num_queued_tokens=index * 10, num_running=index) for index in range(5)]
    first, second = POLICIES[name](Random(3)), POLICIES[name](Random(3))
    picked = [first.pick(groups, REQUEST) for _ in range(20)]
    assert set(picked) <= {view.group_id for view in groups}
    assert picked == [second.pick(groups, REQUEST) for _ in range(20)]
    assert first.pick(groups[:1], REQUEST) == "g0"


def test_round_robin_ignores_load():
    assert RoundRobin().pick([GroupView("a", num_running=50), GroupView("b")], REQUEST) == "a"


def test_power_of_two_takes_the_one_with_fewer_requests():
    groups = [GroupView("a", num_running=2), GroupView("b", num_waiting=1)]
    assert {PowerOfTwo(Random(seed)).pick(groups, REQUEST) for seed in range(20)} == {"b"}


def test_power_of_two_never_picks_the_busiest_but_does_not_always_see_the_idlest():
    groups = [GroupView("a"), GroupView("b", num_running=1), GroupView("c", num_running=2)]
    policy = PowerOfTwo(Random(1))
    assert {policy.pick(groups, REQUEST) for _ in range(50)} == {"a", "b"}


def test_least_requests_counts_waiting_and_running():
    assert LeastRequests().pick([GroupView("a", num_running=3), GroupView("b", num_waiting=2)], REQUEST) == "b"


def test_dynamo_gives_a_cached_prefix_away_for_as_many_resident_tokens():
    warm = GroupView("a", num_cached_tokens=640, num_kv_tokens=700)
    assert DynamoLinear().pick([warm, GroupView("b")], REQUEST) == "b"
    assert DynamoLinear(prefill_weight=2.0).pick([warm, GroupView("b")], REQUEST) == "a"


def test_llm_d_weighs_queue_memory_and_prefix_two_two_and_three():
    idle = GroupView("a", max_kv_tokens=1000)
    warm = GroupView("b", max_kv_tokens=1000, num_cached_tokens=640, num_waiting=1)
    assert LlmD().pick([idle, warm], REQUEST) == "a"  # 2 + 2 against 2 + 1.92
    full = GroupView("a", max_kv_tokens=1000, num_kv_tokens=100)
    assert LlmD().pick([full, warm], REQUEST) == "b"  # 2 + 1.8


@pytest.mark.parametrize("policy", [RayPrefix(Random(1)), SGLangCacheAware(Random(1))])
def test_affinity_follows_the_longest_match_however_long_the_queue(policy):
    groups = [GroupView("a"), GroupView("b", num_cached_tokens=512, num_running=60, num_queued_tokens=10**6)]
    assert policy.pick(groups, REQUEST) == "b"


@pytest.mark.parametrize("policy", [RayPrefix(Random(1)), SGLangCacheAware(Random(1))])
def test_on_a_miss_the_smallest_tree_is_picked_whatever_its_load(policy):
    first = policy.pick([GroupView("a")], REQUEST)
    assert first == "a"
    groups = [GroupView("a"), GroupView("b", num_running=60, num_queued_tokens=10**6)]
    assert policy.pick(groups, RoutingRequest(2000, 10)) == "b"
    assert policy.pick(groups, REQUEST) == "a"


def test_sglang_forgets_caches_when_request_counts_are_out_of_balance():
    policy = SGLangCacheAware(Random(1))
    warm = GroupView("b", num_cached_tokens=960, num_running=65)
    assert policy.pick([GroupView("a"), warm], REQUEST) == "a"
    assert policy.pick([GroupView("a", num_running=44), warm], REQUEST) == "b"


def test_ray_forgets_caches_only_past_its_threshold():
    warm = GroupView("b", num_cached_tokens=960, num_running=12)
    assert RayPrefix(Random(1)).pick([GroupView("a"), warm], REQUEST) == "b"
    assert RayPrefix(Random(1), max_imbalance=10).pick([GroupView("a"), warm], REQUEST) == "a"
