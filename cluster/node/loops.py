"""What runs beside `ray start` on a node, each in a thread of `python -m cluster.node boot`."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from cluster.node.autoscaling_groups import AutoScaling
from cluster.node.aws import aws_client
from cluster.node.commands import SystemCommands
from cluster.node.config import NodeConfig
from cluster.node.dashboard import Dashboard
from cluster.node.draining import DrainLoop, InterruptionQueue, SpotWatch
from cluster.node.errors import NotYet
from cluster.node.imds import InstanceMetadata
from cluster.node.members import ask_members
from cluster.node.ray_start import gcs_address
from cluster.node.ray_view import RayCluster
from cluster.node.scaling import ScalingLoop, ScalingSettings
from core.clock import MonotonicClock

logger = logging.getLogger(__name__)

_SPOT_PERIOD_S = 5.0
"""EC2 recommends to look that often."""


def run_head_loops(config: NodeConfig, stop: threading.Event) -> None:
    """Scale worker groups and drain nodes that AWS takes away, until `stop` is set; blocks."""
    cluster = RayCluster(SystemCommands(), gcs_address(config), Dashboard(None))
    steps: list[Callable[[], None]] = []
    if config.worker_groups or config.interruption_queue_url:
        autoscaling = AutoScaling(aws_client("autoscaling", config.region))
        if config.interruption_queue_url:
            queue = InterruptionQueue(aws_client("sqs", config.region), config.interruption_queue_url)
            names = [group.autoscaling_group for group in config.worker_groups]
            draining = DrainLoop(queue, cluster, autoscaling, names)
            # Without a wait only some of the queue's servers are asked.
            steps.append(lambda: draining.step(wait_s=1))
        steps.append(ScalingLoop(config.worker_groups, cluster, autoscaling, MonotonicClock()).step)
    repeat(steps, ScalingSettings().period_s, stop)


def run_worker_loops(config: NodeConfig, stop: threading.Event) -> None:
    """Drain this node when its own metadata says that it will be taken away, until `stop` is set; blocks."""
    metadata, commands, gcs = InstanceMetadata(), SystemCommands(), gcs_address(config)
    cluster = RayCluster(commands, gcs, Dashboard(None))

    def drain(left_s: float) -> None:
        instance_id = metadata.identify().instance_id
        ours = [m for m in ask_members(commands, gcs) if m.is_alive and m.instance_id == instance_id]
        if not ours:
            raise NotYet(f"the cluster does not count {instance_id} as alive")
        cluster.drain(ours[0].node_id, "EC2 takes this spot machine back", left_s)

    watch = SpotWatch(metadata, drain)
    repeat([lambda: watch.step(time.time())], _SPOT_PERIOD_S, stop)


def repeat(steps: Sequence[Callable[[], None]], period_s: float, stop: threading.Event) -> None:
    """Take every step once a period until `stop` is set. One that is not possible yet does not hold up the others."""
    while not stop.wait(period_s):
        for step in steps:
            try:
                step()
            except NotYet as reason:
                logger.warning("a step of a loop waits", extra={"reason": str(reason)})
