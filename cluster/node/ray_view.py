"""What the loops ask of Ray: what its nodes hold, what waits for room, and to empty a node."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from cluster.node.commands import CommandFailed, Commands
from cluster.node.config import GROUP_LABEL, INSTANCE_LABEL
from cluster.node.dashboard import Dashboard
from cluster.node.errors import BootFailed, NotYet
from cluster.node.ray_start import find_ray

logger = logging.getLogger(__name__)

_MODEL_REPLICA = ":ReplicaGroup"
"""How Ray's class name of the leader of a replica group ends; `deployments/config.py` names the deployment."""
_SERVE_REPLICA = "ServeReplica:"
_PROXY = "ProxyActor"
_RANK = "RankActor"
_WAITS = ("PENDING_CREATION", "DEPENDENCIES_UNREADY", "RESTARTING")
_MAX_ROWS = 10_000
"""What Ray's state API gives at most."""

Bundles = tuple[Mapping[str, float], ...]
"""What a placement group asks for; each bundle fits one node."""


class NodeLoad(NamedTuple):
    """A node that is alive, and what would have to leave it."""

    node_id: str
    instance_id: str
    """Empty for a node that something else started."""
    group: str
    """Worker group; empty for a head that takes no work."""
    num_ranks: int = 0
    """Ranks, and bundles reserved for them."""
    num_leaders: int = 0
    """Leaders of replica groups; their ranks may be on other nodes."""
    num_movable: int = 0
    """Other actors, as gateways are, which Serve starts elsewhere."""

    @property
    def has_models(self) -> bool:
        """Whether a part of a replica is here."""
        return self.num_ranks + self.num_leaders > 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing would have to leave."""
        return not self.has_models and not self.num_movable


class Demand(NamedTuple):
    """What waits for room."""

    placements: Sequence[Bundles]
    """Placement groups without a place: each is the ranks of one replica."""
    num_leaders: int
    """Leaders without a place; what their ranks will ask for is not known yet."""
    num_others: int
    """Other actors of Serve without a place."""


class ClusterState(NamedTuple):
    """Ray's cluster at one moment."""

    nodes: list[NodeLoad]
    demand: Demand


class Cluster(Protocol):
    """Ray as the loops see it."""

    def look(self) -> ClusterState:
        """Return what is where. Raises NotYet while Ray does not tell."""
        ...

    def drain(self, node_id: str, reason: str, deadline_s: float) -> None:
        """Have the node take nothing new, and Serve move what is on it, within `deadline_s` seconds. Again: no harm.

        Raises NotYet.
        """
        ...


class RayNode(msgspec.Struct):
    """A row of `/api/v0/nodes`."""

    node_id: str
    state: str
    labels: dict[str, str] = {}


class RayActor(msgspec.Struct):
    """A row of `/api/v0/actors`."""

    class_name: str
    state: str
    node_id: str | None = None


class Bundle(msgspec.Struct):
    """A part of a row of `/api/v0/placement_groups`."""

    unit_resources: dict[str, float] = {}
    node_id: str | None = None


class RayPlacement(msgspec.Struct):
    """A row of `/api/v0/placement_groups`."""

    state: str
    bundles: list[Bundle] | None = None


def state_of(nodes: list[RayNode], actors: list[RayActor], placements: list[RayPlacement]) -> ClusterState:
    """Return what the rows say."""
    alive = [actor for actor in actors if actor.state == "ALIVE"]
    ranks = Counter(actor.node_id for actor in alive if actor.class_name == _RANK)
    for placement in placements:
        if placement.state == "CREATED":
            ranks.update(bundle.node_id for bundle in placement.bundles or [])
    leaders_of = Counter(actor.node_id for actor in alive if _is_leader(actor))
    movable = Counter(
        actor.node_id for actor in alive if actor.class_name not in (_PROXY, _RANK) and not _is_leader(actor)
    )
    waiting = [actor for actor in actors if actor.state in _WAITS and actor.class_name.startswith(_SERVE_REPLICA)]
    num_leaders = sum(map(_is_leader, waiting))
    wanted = [
        tuple(bundle.unit_resources for bundle in placement.bundles or [])
        for placement in placements
        if placement.state in ("PENDING", "RESCHEDULING")
    ]
    loads = [
        NodeLoad(
            node.node_id,
            node.labels.get(INSTANCE_LABEL, ""),
            node.labels.get(GROUP_LABEL, ""),
            ranks[node.node_id],
            leaders_of[node.node_id],
            movable[node.node_id],
        )
        for node in nodes
        if node.state == "ALIVE"
    ]
    return ClusterState(loads, Demand(wanted, num_leaders, len(waiting) - num_leaders))


def _is_leader(actor: RayActor) -> bool:
    return actor.class_name.startswith(_SERVE_REPLICA) and actor.class_name.endswith(_MODEL_REPLICA)


Row = TypeVar("Row")


class _Rows(msgspec.Struct, Generic[Row]):
    result: list[Row]


class _Data(msgspec.Struct, Generic[Row]):
    result: _Rows[Row]


class _Answer(msgspec.Struct, Generic[Row]):
    data: _Data[Row]


class RayCluster:
    """The cluster that this machine is a node of; a `Cluster`.

    It is asked through the dashboard's state API (`ray list`), which answers on the head only, and drained by the
    command of Ray's own autoscaler. Both take the token from the environment.
    """

    def __init__(self, commands: Commands, gcs: str, dashboard: Dashboard) -> None:
        """`gcs`: HOST:PORT."""
        self._commands = commands
        self._gcs = gcs
        self._dashboard = dashboard

    def look(self) -> ClusterState:
        """Return what is where. Raises NotYet while Ray does not tell."""
        return state_of(
            self._rows("nodes", _Answer[RayNode]),
            self._rows("actors", _Answer[RayActor]),
            self._rows("placement_groups", _Answer[RayPlacement]),
        )

    def drain(self, node_id: str, reason: str, deadline_s: float) -> None:
        """Have the node take nothing new, and Serve move what is on it. Raises NotYet."""
        options = ("--address", self._gcs, "--node-id", node_id, "--reason-message", reason)
        # The other reason, idleness, is refused for nodes that hold as much as a proxy.
        why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", str(max(1, int(deadline_s))))
        try:
            self._commands.run(str(find_ray()), "drain-node", *options, *why)
        except CommandFailed as error:
            raise NotYet(f"node {node_id} is not drained: {error}") from None
        logger.info("node drains", extra={"node": node_id, "reason": reason, "deadline_s": round(deadline_s)})

    def _rows(self, kind: str, answer: type[_Answer[Row]]) -> list[Row]:
        try:
            said = self._dashboard.ask(f"/api/v0/{kind}?detail=1&limit={_MAX_ROWS}")
            return msgspec.json.decode(said, type=answer).data.result.result
        except (BootFailed, msgspec.DecodeError) as error:
            raise NotYet(f"Ray's dashboard does not tell its {kind}: {error}") from None
