import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.node.autoscaling_groups import Fleet
from cluster.node.config import WorkerGroup
from cluster.node.ray_view import Demand, NodeLoad
from cluster.node.scaling import decide, share_demand

H100 = ({"GPU": 1.0, "CPU": 1.0},) * 8
ONE_GPU = ({"GPU": 1.0, "CPU": 1.0},)
CPU_ONLY = ({"CPU": 4.0},)


def group(name="gpu", nodes=1, gpus=8, least=0, most=16):
    return WorkerGroup(
        name=name,
        autoscaling_group=f"asg-{name}",
        nodes_per_replica=nodes,
        gpus_per_node=gpus,
        min_size=least,
        max_size=most,
    )


def fleet(desired, *in_service, pending=()):
    return Fleet(desired, dict.fromkeys(in_service, "InService") | dict.fromkeys(pending, "Pending:Wait"))


def node(instance, ranks=0, leaders=0, movable=0):
    return NodeLoad(f"node-{instance}", instance, "gpu", ranks, leaders, movable)


def demand(*placements, leaders=0, others=0):
    return Demand(list(placements), leaders, others)


@pytest.mark.parametrize(
    ("wanted", "groups", "needed"),
    [
        (demand(H100), [group()], {"gpu": 1}),
        (demand(H100 * 2), [group(nodes=2)], {"gpu": 2}),
        (demand(H100 * 2, H100 * 2), [group(nodes=2)], {"gpu": 4}),
        (demand(*[ONE_GPU] * 9), [group()], {"gpu": 2}),
        (demand(ONE_GPU * 5, ONE_GPU * 5, ONE_GPU * 3), [group()], {"gpu": 2}),
        (demand(H100 * 2), [group("one"), group("two", nodes=2)], {"one": 0, "two": 2}),
        (demand(({"GPU": 16.0},)), [group(nodes=2)], {"gpu": 0}),
        (demand(CPU_ONLY, H100), [group("gpu"), group("cpu", gpus=0)], {"gpu": 1, "cpu": 1}),
        (demand(leaders=5), [group("cpu", gpus=0), group(nodes=2)], {"cpu": 0, "gpu": 2}),
        (demand(H100, leaders=5), [group()], {"gpu": 1}),
        (demand(others=2), [group(), group("cpu", gpus=0)], {"gpu": 0, "cpu": 1}),
        (demand(), [group()], {"gpu": 0}),
        (demand(leaders=1), [], {}),
    ],
    ids=[
        "a replica of one node", "a replica of two nodes", "two of them", "small replicas share nodes",
        "a replica is not cut", "the group that can hold it", "a bundle that fits no machine",
        "GPUs are not spent on CPU models", "leaders start one replica, where models run",
        "leaders wait for the ranks that are known", "a gateway takes a machine without GPUs", "nothing", "no groups",
    ],
)  # fmt: skip
def test_what_waits_becomes_machines_of_whole_replicas(wanted, groups, needed):
    assert share_demand(wanted, groups) == needed


def test_machines_that_start_or_stand_empty_count_for_what_waits():
    assert decide(group(), fleet(1, pending=("i-1",)), [], 1, set(), 0).desired == 1
    assert decide(group(), fleet(2, "i-1", "i-2"), [node("i-1", ranks=8), node("i-2")], 1, set(), 0).desired == 2
    assert decide(group(), fleet(2, "i-1", "i-2"), [node("i-1", ranks=8), node("i-2")], 2, set(), 0).desired == 3


def test_a_group_never_grows_beyond_its_largest_whole_replica():
    assert decide(group(nodes=2, most=5), fleet(2, "i-1", "i-2"), [], 8, set(), 0).desired == 4


def test_nothing_is_given_back_while_something_waits():
    nodes = [node("i-1"), node("i-2")]
    assert decide(group(), fleet(2, "i-1", "i-2"), nodes, 1, {"i-1", "i-2"}, 0).surplus == ()


def test_nothing_is_given_back_while_machines_start():
    sizing = decide(group(), fleet(2, "i-1", pending=("i-2",)), [node("i-1")], 0, {"i-1"}, 0)
    assert sizing == (2, ())


def test_a_replica_of_two_machines_goes_whole_or_stays():
    nodes = [node("i-1", ranks=8), node("i-2", ranks=8), node("i-3"), node("i-4", leaders=1)]
    four = fleet(4, "i-1", "i-2", "i-3", "i-4")
    assert decide(group(nodes=2), four, nodes, 0, {"i-3"}, 0).surplus == ()
    nodes[3] = node("i-4")
    sizing = decide(group(nodes=2), four, nodes, 0, {"i-3", "i-4"}, 0)
    assert [each.instance_id for each in sizing.surplus] == ["i-3", "i-4"]
    assert sizing.desired == 2


def test_only_machines_that_were_empty_for_long_go():
    nodes = [node("i-1"), node("i-2")]
    sizing = decide(group(), fleet(2, "i-1", "i-2"), nodes, 0, {"i-2"}, 0)
    assert [each.instance_id for each in sizing.surplus] == ["i-2"]


def test_gateways_keep_the_last_machine_that_they_can_be_on():
    nodes = [node("i-1", movable=1)]
    assert decide(group(), fleet(1, "i-1"), nodes, 0, {"i-1"}, others=0).surplus == ()
    assert len(decide(group(), fleet(1, "i-1"), nodes, 0, {"i-1"}, others=1).surplus) == 1


def test_a_head_that_takes_work_is_no_machine_of_the_group():
    head = node("i-head")
    assert decide(group(), fleet(0), [head], 0, {"i-head"}, 0) == (0, ())
    assert decide(group(), fleet(0), [head._replace(num_ranks=8)], 1, set(), 0).desired == 1


@given(
    unit=st.integers(1, 4), replicas=st.integers(0, 5), empty=st.integers(0, 8), needed=st.integers(0, 5),
    least=st.integers(0, 4), most_replicas=st.integers(1, 6),
)  # fmt: skip
def test_sizes_are_whole_replicas_within_limits(unit, replicas, empty, needed, least, most_replicas):
    used = [node(f"i-{i}", ranks=8) for i in range(replicas * unit)]
    idle = [node(f"j-{i}") for i in range(empty)]
    names = [each.instance_id for each in used + idle]
    most = max(most_replicas * unit, len(names), least)
    of = group(nodes=unit, least=least, most=most)
    sizing = decide(of, fleet(len(names), *names), used + idle, needed * unit, {each.instance_id for each in idle}, 1)
    assert len(sizing.surplus) % unit == 0
    assert not any(each.has_models for each in sizing.surplus)
    assert sizing.desired <= most
    if sizing.surplus:
        assert sizing.desired >= least
        assert sizing.desired == len(names) - len(sizing.surplus)
