"""The loop against moto's Auto Scaling group, whose machines start and end."""

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from cluster.node.autoscaling_groups import AutoScaling
from cluster.node.config import WorkerGroup
from cluster.node.errors import NotYet
from cluster.node.ray_view import Demand, NodeLoad
from cluster.node.scaling import ScalingLoop, ScalingSettings
from tests.support.auto_scaling_groups import desired_of, instances_of, make_group
from tests.support.fake_clock import FakeClock
from tests.support.fake_clusters import NO_DEMAND, FakeCluster

GROUP = WorkerGroup(
    name="gpu", autoscaling_group="asg-gpu", nodes_per_replica=2, gpus_per_node=8, min_size=0, max_size=4
)
REPLICA = ({"GPU": 1.0},) * 16
SETTINGS = ScalingSettings(up_after_s=15, down_after_s=600, drain_s=60)


@pytest.fixture
def aws():
    with mock_aws():
        yield make_group("asg-gpu", desired=0, max_size=4)


def loop_of(aws, cluster, clock):
    return ScalingLoop([GROUP], cluster, AutoScaling(aws), clock, SETTINGS)


def register(aws, cluster, **load):
    cluster.nodes = [NodeLoad(f"node-{name}", name, "gpu", **load) for name in instances_of(aws, "asg-gpu")]


def test_a_replica_that_waits_gets_its_machines_and_later_they_are_given_back(aws):
    cluster, clock = FakeCluster(), FakeClock()
    loop = loop_of(aws, cluster, clock)
    cluster.demand = Demand([REPLICA], 0, 0)
    loop.step()
    assert desired_of(aws, "asg-gpu") == 0, "what waits for a moment only adds nothing"
    clock.advance(20)
    loop.step()
    assert desired_of(aws, "asg-gpu") == 2
    loop.step()
    assert desired_of(aws, "asg-gpu") == 2, "what starts already is not started twice"

    register(aws, cluster, num_ranks=8)
    cluster.demand = NO_DEMAND
    clock.advance(1000)
    loop.step()
    assert cluster.drained == []

    register(aws, cluster)
    loop.step()
    clock.advance(599)
    loop.step()
    assert cluster.drained == []
    clock.advance(2)
    loop.step()
    assert len(cluster.drained) == 2
    assert desired_of(aws, "asg-gpu") == 0
    assert instances_of(aws, "asg-gpu") == []


def test_a_machine_with_a_gateway_is_ended_when_that_has_moved(aws):
    cluster, clock = FakeCluster(), FakeClock()
    aws.set_desired_capacity(AutoScalingGroupName="asg-gpu", DesiredCapacity=2)
    register(aws, cluster)
    cluster.nodes.append(NodeLoad("node-cpu", "i-cpu", "cpu"))
    gateway = cluster.nodes[0].instance_id
    cluster.set(gateway, num_movable=1)
    loop = loop_of(aws, cluster, clock)
    loop.step()
    clock.advance(601)
    loop.step()
    assert len(cluster.drained) == 2
    assert instances_of(aws, "asg-gpu") == [gateway]
    cluster.set(gateway, num_movable=0)
    loop.step()
    assert instances_of(aws, "asg-gpu") == []


def test_a_machine_is_ended_in_time_even_if_something_stays_on_it(aws):
    cluster, clock = FakeCluster(), FakeClock()
    aws.set_desired_capacity(AutoScalingGroupName="asg-gpu", DesiredCapacity=2)
    register(aws, cluster, num_movable=1)
    cluster.nodes.append(NodeLoad("node-cpu", "i-cpu", "cpu"))
    loop = loop_of(aws, cluster, clock)
    loop.step()
    clock.advance(601)
    loop.step()
    assert len(instances_of(aws, "asg-gpu")) == 2
    clock.advance(61)
    loop.step()
    assert instances_of(aws, "asg-gpu") == []


def test_a_group_that_aws_does_not_have_is_named():
    with mock_aws():
        make_group("another", desired=0, max_size=1)
        loop = loop_of(boto3.client("autoscaling", region_name="us-east-1"), FakeCluster(), FakeClock())
        with pytest.raises(NotYet, match="asg-gpu does not exist"):
            loop.step()


class Client:
    def terminate_instance_in_auto_scaling_group(self, **fields):
        message = "Instance Id not found - No managed instance found for instance ID: i-1"
        raise ClientError(
            {"Error": {"Code": "ValidationError", "Message": message}}, "TerminateInstanceInAutoScalingGroup"
        )


def test_a_machine_that_is_gone_already_holds_up_nothing():
    AutoScaling(Client()).give_back("i-1")
