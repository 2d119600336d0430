"""How many machines each worker group should have: whole replicas for what waits, none for what is empty for long.

`decide` is pure; `ScalingLoop` looks, decides and acts. The Auto Scaling group launches and ends machines, this module
says how many and which.
"""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

from cluster.node.autoscaling_groups import AutoScaling, Fleet
from cluster.node.config import WorkerGroup
from cluster.node.ray_view import Bundles, Cluster, ClusterState, Demand, NodeLoad
from core.clock import Clock
from core.config import Config

logger = logging.getLogger(__name__)

_NOTHING = 1e-6


class ScalingSettings(Config):
    """When to act."""

    period_s: float = 10.0
    """Seconds between looks."""
    up_after_s: float = 15.0
    """Something has to wait so long before machines are added for it."""
    down_after_s: float = 600.0
    """A machine has to be empty so long before it is given back."""
    drain_s: float = 60.0
    """What an empty machine gets to let its gateways move."""


class Sizing(NamedTuple):
    """What should be done about one group."""

    desired: int
    """Machines that it should have."""
    surplus: tuple[NodeLoad, ...]
    """Nodes to drain and give back, whole replicas of them."""


class Idleness:
    """Since when what holds; forgets it as soon as it does not."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}

    def note(self, names: Sequence[str], now_s: float) -> None:
        """Take in what holds now."""
        self._since_s = {name: self._since_s.get(name, now_s) for name in names}

    def lasting(self, for_s: float, now_s: float) -> set[str]:
        """Return what has held for so long."""
        return {name for name, since_s in self._since_s.items() if now_s - since_s >= for_s}


def share_demand(demand: Demand, groups: Sequence[WorkerGroup]) -> dict[str, int]:
    """Return how many machines more each group would need, if it were full: always whole replicas.

    A placement goes to the first group whose machines can hold it. Leaders and gateways without a place say nothing of
    machines: as long as nothing else waits, one replica's machines are added, where the rest is seen.
    """
    needed = {group.name: 0 for group in groups}
    for group in groups:
        replicas = [bundles for bundles in demand.placements if _home(bundles, groups) is group]
        if not replicas:
            continue
        if group.nodes_per_replica > 1:
            needed[group.name] = len(replicas) * group.nodes_per_replica
        else:
            gpus = [sum(bundle.get("GPU", 0.0) for bundle in bundles) for bundles in replicas]
            needed[group.name] = _num_nodes_for(gpus, group.gpus_per_node)
    if groups and not any(needed.values()) and demand.num_leaders + demand.num_others:
        is_for_models = demand.num_leaders > 0
        first = next((group for group in groups if bool(group.gpus_per_node) == is_for_models), groups[0])
        needed[first.name] = first.nodes_per_replica
    return needed


def decide(
    group: WorkerGroup, fleet: Fleet, nodes: Sequence[NodeLoad], needed: int, empty_for_long: set[str], others: int
) -> Sizing:
    """Return what the group should be.

    `nodes`: of this group. `needed`: machines that what waits would take if no machine were empty. `others`: nodes of
    the cluster, beside this group's, that can take gateways.
    """
    unit = group.nodes_per_replica
    # A head may take work of the group, and is none of its machines.
    nodes = [node for node in nodes if node.instance_id in fleet.instances]
    in_use = sum(1 for node in nodes if node.num_ranks)
    if needed:
        wanted = _whole(in_use, unit) + needed
        most = group.max_size // unit * unit
        return Sizing(max(fleet.desired, min(wanted, most)), ())
    candidates = [
        node
        for node in sorted(nodes, key=lambda node: (node.num_movable, node.node_id))
        if not node.has_models and node.instance_id in empty_for_long and fleet.is_in_service(node.instance_id)
    ]
    # Machines that start now were asked for by somebody: first they show what they are for.
    if fleet.is_growing:
        return Sizing(max(fleet.desired, group.min_size), ())
    spare = min(len(candidates), max(0, fleet.desired - group.min_size))
    surplus = candidates[: spare // unit * unit]
    if any(node.num_movable for node in surplus) and others + len(nodes) == len(surplus):
        # The gateways on them would have no machine left.
        surplus = surplus[: (len(surplus) - 1) // unit * unit]
    return Sizing(max(fleet.desired, group.min_size) - len(surplus), tuple(surplus))


def _home(bundles: Bundles, groups: Sequence[WorkerGroup]) -> WorkerGroup | None:
    """Return the first group whose machines can hold a replica: none with GPUs for one that needs none, if possible."""
    total = sum(bundle.get("GPU", 0.0) for bundle in bundles)
    largest = max((bundle.get("GPU", 0.0) for bundle in bundles), default=0.0)
    if not total:
        return next((group for group in groups if not group.gpus_per_node), groups[0] if groups else None)
    fitting = (
        group
        for group in groups
        if largest <= group.gpus_per_node and total <= group.gpus_per_node * group.nodes_per_replica
    )
    return next(fitting, None)


def _num_nodes_for(gpus: Sequence[float], gpus_per_node: int) -> int:
    """Return how many empty nodes hold replicas of so many GPUs each: the largest first, each where there is room."""
    if not gpus_per_node or not any(gpus):
        return len(gpus)
    free: list[float] = []
    for wanted in sorted(gpus, reverse=True):
        index = next((i for i, room in enumerate(free) if room + _NOTHING >= wanted), None)
        if index is None:
            free.append(gpus_per_node - wanted)
        else:
            free[index] -= wanted
    return len(free)


def _whole(num_nodes: int, unit: int) -> int:
    return math.ceil(num_nodes / unit) * unit


class ScalingLoop:
    """`step` is one look. A machine is drained at one look and ended at a later one, when nothing is left on it."""

    def __init__(
        self,
        groups: Sequence[WorkerGroup],
        cluster: Cluster,
        autoscaling: AutoScaling,
        clock: Clock,
        settings: ScalingSettings | None = None,
    ) -> None:
        self._groups = groups
        self._cluster = cluster
        self._autoscaling = autoscaling
        self._clock = clock
        self._settings = settings or ScalingSettings()
        self._empty = Idleness()
        self._wanting = Idleness()
        self._draining: dict[str, float] = {}
        """By instance id, until when."""

    def step(self) -> None:
        """Look, decide, act. Raises NotYet while Ray or AWS does not answer."""
        now_s = self._clock.now_s()
        state = self._cluster.look()
        self._empty.note([node.instance_id for node in state.nodes if not node.has_models], now_s)
        needed = share_demand(state.demand, self._groups)
        self._wanting.note([name for name, num_nodes in needed.items() if num_nodes], now_s)
        lasting = self._wanting.lasting(self._settings.up_after_s, now_s)
        empty = self._empty.lasting(self._settings.down_after_s, now_s)
        for group in self._groups:
            self._size(group, state, needed[group.name], group.name in lasting, empty)
        self._finish(state, now_s)

    def _size(self, group: WorkerGroup, state: ClusterState, needed: int, is_lasting: bool, empty: set[str]) -> None:
        if needed and not is_lasting:
            return
        fleet = self._autoscaling.fleet(group)
        nodes = [node for node in state.nodes if node.group == group.name and node.instance_id not in self._draining]
        others = sum(1 for node in state.nodes if node.group and node.group != group.name)
        # What drains is counted by AWS until it is ended, and is of no use to anybody.
        leaving = sum(1 for instance in fleet.instances if instance in self._draining)
        present = fleet._replace(desired=fleet.desired - leaving)
        sizing = decide(group, present, nodes, needed, empty, others)
        if sizing.desired > present.desired:
            desired = min(sizing.desired + leaving, group.max_size)
            logger.info("group grows", extra={"group": group.name, "desired": desired, "was": fleet.desired})
            self._autoscaling.grow(group, desired)
        for node in sizing.surplus:
            self._cluster.drain(node.node_id, f"{group.name} has no use for it", self._settings.drain_s)
            self._draining[node.instance_id] = self._clock.now_s() + self._settings.drain_s

    def _finish(self, state: ClusterState, now_s: float) -> None:
        """End machines that are empty now, or whose time is over."""
        loads = {node.instance_id: node for node in state.nodes}
        for instance_id, until_s in list(self._draining.items()):
            node = loads.get(instance_id)
            if node is None or node.is_empty or now_s >= until_s:
                self._autoscaling.give_back(instance_id)
                del self._draining[instance_id]
                logger.info("machine given back", extra={"instance": instance_id})
