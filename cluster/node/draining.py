"""Machines that AWS takes away: their work moves first. Events come by a queue, or from the machine's own metadata.

A message stays in the queue until its machine is done with. A head that replaces another receives it again, and every
step may be taken twice.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from cluster.node.autoscaling_groups import AutoScaling
from cluster.node.aws import ask_aws
from cluster.node.errors import NotYet
from cluster.node.imds import InstanceMetadata
from cluster.node.ray_view import Cluster, NodeLoad

logger = logging.getLogger(__name__)

SPOT_WARNING_S = 120.0
"""EC2 warns so long before it takes a spot machine back."""
_MARGIN_S = 10.0
"""Replicas have left so long before the machine goes."""
_PATIENT_S = 600.0
"""What a machine gets that nobody takes away at a fixed time: as long as a request may last by default."""
_HOOK_S = 840.0
"""What the hook of an ending machine gets; it should wait for 900 s."""
_HIDDEN_S = 120
"""A message that was received is received again after so long, unless it was deleted."""

Kind = Literal["spot", "rebalance", "terminating", "maintenance"]


class Hook(NamedTuple):
    """A lifecycle action that waits to be completed."""

    group: str
    name: str
    token: str


class Notice(NamedTuple):
    """A machine is going to go."""

    kind: Kind
    instance_id: str
    deadline_s: float
    """Unix time by which its work should have moved."""
    hook: Hook | None = None


Action = Literal["drain", "wait", "finish"]


def parse_event(body: str) -> list[Notice]:
    """Return what an EventBridge event says; nothing for events that are not about machines going.

    Raises ValueError for what is no event.
    """
    event = json.loads(body)
    if not isinstance(event, dict) or not isinstance(detail := event.get("detail"), dict):
        raise ValueError("not an EventBridge event")
    try:
        return _notices(str(event.get("detail-type")), detail, _unix(event["time"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"an EventBridge event without {error}") from None


def _notices(kind: str, detail: Mapping[str, Any], sent_s: float) -> list[Notice]:
    match kind:
        case "EC2 Spot Instance Interruption Warning":
            return [Notice("spot", detail["instance-id"], sent_s + SPOT_WARNING_S - _MARGIN_S)]
        case "EC2 Instance Rebalance Recommendation":
            return [Notice("rebalance", detail["instance-id"], sent_s + _PATIENT_S)]
        case "EC2 Instance-terminate Lifecycle Action":
            hook = Hook(detail["AutoScalingGroupName"], detail["LifecycleHookName"], detail["LifecycleActionToken"])
            return [Notice("terminating", detail["EC2InstanceId"], sent_s + _HOOK_S, hook)]
        case "AWS Health Event" if detail.get("eventTypeCategory") == "scheduledChange":
            machines = [entity["entityValue"] for entity in detail.get("affectedEntities", [])]
            return [Notice("maintenance", name, sent_s + _PATIENT_S) for name in machines if name.startswith("i-")]
        case _:
            return []


def next_action(notice: Notice, node: NodeLoad | None, is_draining: bool, now_s: float) -> Action:
    """Return what is to be done now; `node` is None when the cluster does not have the machine (any more)."""
    if node is None or now_s >= notice.deadline_s:
        return "finish"
    if not is_draining:
        return "drain"
    return "finish" if node.is_empty else "wait"


def _unix(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


class InterruptionQueue:
    """The SQS queue with events."""

    def __init__(self, client: Any, url: str) -> None:
        """`client`: boto3's of `sqs`."""
        self._client = client
        self._url = url

    def receive(self, wait_s: int) -> dict[str, str]:
        """Return the messages that nobody else works on: body by receipt. Waits for the first one. Raises NotYet."""
        answer = ask_aws(
            f"queue {self._url}",
            lambda: self._client.receive_message(
                QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=wait_s, VisibilityTimeout=_HIDDEN_S
            ),
        )
        return {message["ReceiptHandle"]: message["Body"] for message in answer.get("Messages", [])}

    def keep(self, receipt: str) -> bool:
        """Go on hiding the message from others; return whether it was still hidden."""
        try:
            ask_aws(
                f"queue {self._url}",
                lambda: self._client.change_message_visibility(
                    QueueUrl=self._url, ReceiptHandle=receipt, VisibilityTimeout=_HIDDEN_S
                ),
            )
        except NotYet as error:
            logger.info("message is not ours any more", extra={"error": str(error)})
            return False
        return True

    def delete(self, receipt: str) -> None:
        """Be done with the message. Raises NotYet."""
        ask_aws(f"queue {self._url}", lambda: self._client.delete_message(QueueUrl=self._url, ReceiptHandle=receipt))


class Case:
    """One message and the machines that it is about."""

    def __init__(self, receipt: str, notices: list[Notice]) -> None:
        self.receipt = receipt
        self.open = {notice.instance_id: notice for notice in notices}


class DrainLoop:
    """`step` is one look: takes what is in the queue, and brings each machine a step further."""

    def __init__(
        self,
        queue: InterruptionQueue,
        cluster: Cluster,
        autoscaling: AutoScaling,
        groups: Collection[str],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """`groups`: the Auto Scaling groups of this cluster; events may be of others too. `now_s`: unix time."""
        self._queue = queue
        self._cluster = cluster
        self._autoscaling = autoscaling
        self._groups = frozenset(groups)
        self._now_s = now_s
        self._cases: dict[str, Case] = {}
        self._draining: set[str] = set()

    def step(self, wait_s: int = 0) -> None:
        """Look, and do what is due. Raises NotYet while Ray or AWS does not answer; nothing is lost then."""
        for receipt, body in self._queue.receive(wait_s).items():
            self._cases[receipt] = Case(receipt, [notice for notice in _read(body) if self._is_ours(notice)])
        if not self._cases:
            return
        nodes = {node.instance_id: node for node in self._cluster.look().nodes if node.instance_id}
        for case in list(self._cases.values()):
            for notice in list(case.open.values()):
                self._attend(case, notice, nodes.get(notice.instance_id))
            if not case.open:
                self._queue.delete(case.receipt)
                del self._cases[case.receipt]
            elif not self._queue.keep(case.receipt):
                # It was away for too long, and is received again under another receipt.
                del self._cases[case.receipt]

    def _is_ours(self, notice: Notice) -> bool:
        return notice.hook is None or notice.hook.group in self._groups

    def _attend(self, case: Case, notice: Notice, node: NodeLoad | None) -> None:
        match next_action(notice, node, notice.instance_id in self._draining, self._now_s()):
            case "drain" if node is not None:
                left_s = notice.deadline_s - self._now_s()
                self._cluster.drain(node.node_id, f"AWS: {notice.kind}", left_s)
                self._draining.add(notice.instance_id)
            case "finish":
                self._finish(notice, node)
                self._draining.discard(notice.instance_id)
                del case.open[notice.instance_id]

    def _finish(self, notice: Notice, node: NodeLoad | None) -> None:
        logger.info("machine is done with", extra={"instance": notice.instance_id, "kind": notice.kind})
        if notice.hook is not None:
            self._autoscaling.complete(notice.hook.group, notice.hook.name, notice.hook.token, notice.instance_id)
        elif notice.kind == "maintenance" and node is not None:
            # Else it would stay, without work, until its day has come.
            self._autoscaling.give_back(notice.instance_id, is_replaced=True)


class SpotWatch:
    """Asks this machine's metadata whether EC2 takes it back: works without the queue, and without the head's loop."""

    def __init__(self, metadata: InstanceMetadata, drain: Callable[[float], None]) -> None:
        """`drain`: have this node drained within so many seconds; raises NotYet."""
        self._metadata = metadata
        self._drain = drain
        self._is_done = False

    def step(self, now_s: float) -> None:
        """Look, and drain when told. `now_s`: unix time. Raises NotYet; the next look tries again."""
        if self._is_done:
            return
        told = self._metadata.get("spot/instance-action")
        if told is None:
            return
        action = json.loads(told)
        left_s = _unix(action["time"]) - _MARGIN_S - now_s
        logger.warning("EC2 takes this machine back", extra={"action": action["action"], "left_s": round(left_s)})
        self._drain(max(1.0, left_s))
        self._is_done = True


def _read(body: str) -> list[Notice]:
    try:
        return parse_event(body)
    except ValueError as error:
        logger.warning("message is no event of ours", extra={"error": str(error)})
        return []
