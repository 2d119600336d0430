"""The loop against moto's queue and Auto Scaling group."""

import json
from datetime import UTC, datetime

import boto3
import pytest
from moto import mock_aws

from cluster.node.autoscaling_groups import AutoScaling
from cluster.node.draining import DrainLoop, Hook, InterruptionQueue, Notice, SpotWatch, next_action, parse_event
from cluster.node.errors import NotYet
from cluster.node.ray_view import NodeLoad
from tests.support.auto_scaling_groups import REGION, instances_of, make_group
from tests.support.fake_clusters import FakeCluster

SENT = "2026-11-22T12:00:00Z"
SENT_S = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()


def event(kind, detail):
    return json.dumps({"version": "0", "source": "aws.ec2", "detail-type": kind, "time": SENT, "detail": detail})


SPOT = event("EC2 Spot Instance Interruption Warning", {"instance-id": "i-1", "instance-action": "terminate"})
REBALANCE = event("EC2 Instance Rebalance Recommendation", {"instance-id": "i-1"})
TERMINATE = event(
    "EC2 Instance-terminate Lifecycle Action",
    {
        "LifecycleActionToken": "token-1",
        "AutoScalingGroupName": "asg-gpu",
        "LifecycleHookName": "drain",
        "EC2InstanceId": "i-1",
        "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
    },
)


def maintenance(*instances):
    return event(
        "AWS Health Event",
        {"eventTypeCategory": "scheduledChange", "affectedEntities": [{"entityValue": name} for name in instances]},
    )


class Recording(AutoScaling):
    """Completes in memory what moto has no lifecycle actions for."""

    def __init__(self, client):
        super().__init__(client)
        self.completed = []

    def complete(self, group, hook, token, instance_id):
        self.completed.append((group, hook, token, instance_id))


class Head:
    """One head and its loop; another one has the same queue."""

    def __init__(self, queue_url, cluster, autoscaling, now_s=SENT_S):
        self.now_s = now_s
        queue = InterruptionQueue(boto3.client("sqs", region_name=REGION), queue_url)
        self.loop = DrainLoop(queue, cluster, autoscaling, ["asg-gpu"], lambda: self.now_s)

    def step(self):
        self.loop.step()


@pytest.fixture
def aws():
    with mock_aws():
        yield boto3.client("sqs", region_name=REGION)


@pytest.fixture
def queue_url(aws):
    return aws.create_queue(QueueName="interruptions")["QueueUrl"]


@pytest.fixture
def autoscaling(aws):
    return Recording(boto3.client("autoscaling", region_name=REGION))


def busy_node(instance="i-1"):
    return NodeLoad(f"node-{instance}", instance, "gpu", num_ranks=8, num_leaders=1)


def num_messages(aws, queue_url):
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = aws.get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]
    return sum(int(found[name]) for name in names)


@pytest.mark.parametrize(
    ("body", "notices"),
    [
        (SPOT, [Notice("spot", "i-1", SENT_S + 110)]),
        (REBALANCE, [Notice("rebalance", "i-1", SENT_S + 600)]),
        (TERMINATE, [Notice("terminating", "i-1", SENT_S + 840, Hook("asg-gpu", "drain", "token-1"))]),
        (maintenance("i-1", "vol-1", "i-2"), [Notice("maintenance", name, SENT_S + 600) for name in ("i-1", "i-2")]),
        (event("EC2 Instance State-change Notification", {"instance-id": "i-1"}), []),
        (event("AWS Health Event", {"eventTypeCategory": "accountNotification"}), []),
    ],
)
def test_events_of_aws_are_understood(body, notices):
    assert parse_event(body) == notices


@pytest.mark.parametrize("body", ["", "[]", "{}", SPOT.replace("instance-id", "x"), SPOT.replace(SENT, "yesterday")])
def test_what_is_no_event_is_a_value_error(body):
    with pytest.raises(ValueError):
        parse_event(body)


def test_a_machine_is_drained_once_watched_and_let_go_when_it_is_empty_or_late():
    notice = Notice("spot", "i-1", SENT_S + 110)
    busy, empty = busy_node(), NodeLoad("node-i-1", "i-1", "gpu")
    assert next_action(notice, busy, False, SENT_S) == "drain"
    assert next_action(notice, busy, True, SENT_S) == "wait"
    assert next_action(notice, empty, True, SENT_S) == "finish"
    assert next_action(notice, empty, False, SENT_S) == "drain", "an empty machine must not be given new work"
    assert next_action(notice, busy, True, SENT_S + 110) == "finish"
    assert next_action(notice, None, False, SENT_S) == "finish"


def test_a_hook_is_completed_and_its_message_deleted_only_when_the_machine_is_empty(aws, queue_url, autoscaling):
    cluster = FakeCluster(busy_node())
    head = Head(queue_url, cluster, autoscaling)
    aws.send_message(QueueUrl=queue_url, MessageBody=TERMINATE)
    head.step()
    head.step()
    assert cluster.drained == [("node-i-1", 840.0)]
    assert autoscaling.completed == []
    assert num_messages(aws, queue_url) == 1
    cluster.set("i-1", num_ranks=0, num_leaders=0)
    head.step()
    assert autoscaling.completed == [("asg-gpu", "drain", "token-1", "i-1")]
    assert num_messages(aws, queue_url) == 0


def test_a_machine_that_does_not_get_empty_is_let_go_at_its_deadline(aws, queue_url, autoscaling):
    head = Head(queue_url, FakeCluster(busy_node()), autoscaling)
    aws.send_message(QueueUrl=queue_url, MessageBody=TERMINATE)
    head.step()
    head.now_s += 841
    head.step()
    assert len(autoscaling.completed) == 1
    assert num_messages(aws, queue_url) == 0


def test_a_new_head_finishes_what_the_old_one_began(aws, queue_url, autoscaling):
    cluster = FakeCluster(busy_node())
    aws.send_message(QueueUrl=queue_url, MessageBody=TERMINATE)
    Head(queue_url, cluster, autoscaling).step()
    # The old head is gone, and its message is visible again.
    receipt = next(iter(_in_flight(queue_url)))
    aws.change_message_visibility(QueueUrl=queue_url, ReceiptHandle=receipt, VisibilityTimeout=0)
    new = Head(queue_url, cluster, autoscaling, SENT_S + 100)
    new.step()
    assert cluster.drained == [("node-i-1", 840.0), ("node-i-1", 740.0)]
    cluster.set("i-1", num_ranks=0, num_leaders=0)
    new.step()
    assert len(autoscaling.completed) == 1
    assert num_messages(aws, queue_url) == 0


def _in_flight(queue_url):
    from moto.backends import get_backend

    backend = get_backend("sqs")["123456789012"][REGION]
    return [message.receipt_handle for queue in backend.queues.values() for message in queue._messages]


def test_maintenance_replaces_the_machine_before_its_day():
    with mock_aws():
        client = make_group("asg-gpu", desired=1, max_size=2)
        sqs = boto3.client("sqs", region_name=REGION)
        url = sqs.create_queue(QueueName="interruptions")["QueueUrl"]
        (instance,) = instances_of(client, "asg-gpu")
        cluster = FakeCluster(busy_node(instance))
        head = Head(url, cluster, AutoScaling(client))
        sqs.send_message(QueueUrl=url, MessageBody=maintenance(instance))
        head.step()
        cluster.set(instance, num_ranks=0, num_leaders=0)
        head.step()
        assert instance not in instances_of(client, "asg-gpu")


def test_a_machine_that_the_cluster_does_not_have_keeps_no_hook_waiting(aws, queue_url, autoscaling):
    aws.send_message(QueueUrl=queue_url, MessageBody=TERMINATE)
    Head(queue_url, FakeCluster(), autoscaling).step()
    assert len(autoscaling.completed) == 1


def test_the_hook_of_another_cluster_is_left_alone(aws, queue_url, autoscaling):
    aws.send_message(QueueUrl=queue_url, MessageBody=TERMINATE.replace("asg-gpu", "asg-of-others"))
    Head(queue_url, FakeCluster(), autoscaling).step()
    assert autoscaling.completed == []
    assert num_messages(aws, queue_url) == 0


def test_a_message_that_is_no_event_is_deleted(aws, queue_url, autoscaling):
    aws.send_message(QueueUrl=queue_url, MessageBody="hello")
    Head(queue_url, FakeCluster(), autoscaling).step()
    assert num_messages(aws, queue_url) == 0


class SilentCluster(FakeCluster):
    def look(self):
        raise NotYet("Ray does not tell")


def test_nothing_is_lost_while_ray_does_not_answer(aws, queue_url, autoscaling):
    aws.send_message(QueueUrl=queue_url, MessageBody=TERMINATE)
    with pytest.raises(NotYet):
        Head(queue_url, SilentCluster(), autoscaling).step()
    assert num_messages(aws, queue_url) == 1


class Metadata:
    def __init__(self, *answers):
        self.answers = list(answers)

    def get(self, path):
        assert path == "spot/instance-action"
        return self.answers.pop(0)


def test_a_spot_machine_drains_itself_once_by_the_time_it_is_told():
    told = json.dumps({"action": "terminate", "time": "2026-11-22T12:02:00Z"})
    drained = []
    watch = SpotWatch(Metadata(None, told), drained.append)
    for _ in range(3):
        watch.step(SENT_S)
    assert drained == [110.0]


def test_a_spot_machine_tries_again_when_ray_did_not_hear():
    told = json.dumps({"action": "stop", "time": "2026-11-22T12:02:00Z"})
    drained = []

    def drain(left_s):
        drained.append(left_s)
        if len(drained) == 1:
            raise NotYet("no answer")

    watch = SpotWatch(Metadata(told, told), drain)
    with pytest.raises(NotYet):
        watch.step(SENT_S)
    watch.step(SENT_S + 5)
    assert drained == [110.0, 105.0]
