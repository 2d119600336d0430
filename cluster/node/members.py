"""Which nodes the cluster has, as its GCS tells. A process of its own asks: Ray ends one whose GCS stays away."""

import sys
from collections.abc import Sequence

import msgspec

from cluster.node.commands import CommandFailed, Commands
from cluster.node.config import INSTANCE_LABEL, START_LABEL
from cluster.node.errors import NotYet

_TIMEOUT_S = 20.0


class Member(msgspec.Struct, frozen=True):
    """One node of the cluster, alive or remembered."""

    node_id: str
    address: str
    is_alive: bool
    resources: dict[str, float]
    labels: dict[str, str]

    @property
    def instance_id(self) -> str:
        """Its EC2 instance; empty for a node that something else started."""
        return self.labels.get(INSTANCE_LABEL, "")


def ask_members(commands: Commands, address: str) -> list[Member]:
    """Return the nodes, asked by a process of its own; takes seconds. Raises NotYet while the GCS does not answer."""
    command = (sys.executable, "-m", "cluster.node", "status", "--json", "--address", address)
    try:
        return msgspec.json.decode(commands.run(*command, timeout_s=60), type=list[Member])
    except (CommandFailed, msgspec.DecodeError) as error:
        raise NotYet(f"the GCS at {address} does not tell its nodes: {error}") from None


def read_members(address: str) -> list[Member]:
    """Return the nodes. Raises NotYet; and Ray ends this process if the GCS is away for a minute."""
    # The client of Ray's own commands and no documented API, in this one place. `ray.init()` would make this process a
    # driver, for which Ray starts a worker on every CPU.
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # pyright: ignore[reportAttributeAccessIssue]

    try:
        nodes = GcsClient(address=address).get_all_node_info(timeout=_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - what it raises is not documented either
        raise NotYet(f"the GCS at {address} does not answer: {error}") from None
    return [
        Member(
            node_id=node_id.hex(),
            address=node.node_manager_address,
            is_alive=node.state == GcsNodeInfo.ALIVE,
            resources=dict(node.resources_total),
            labels=dict(node.labels),
        )
        for node_id, node in nodes.items()
    ]


def describe(members: Sequence[Member]) -> str:
    """Return a line for each node that is alive, then how many are remembered as dead."""
    lines = [
        f"{member.address:15}  {member.instance_id or '-':19}  CPU {member.resources.get('CPU', 0):g}  "
        f"GPU {member.resources.get('GPU', 0):g}  " + " ".join(f"{k}={v}" for k, v in sorted(_own(member).items()))
        for member in sorted(members, key=lambda member: member.address)
        if member.is_alive
    ]
    num_dead = len(members) - len(lines)
    return "\n".join([*lines, f"{len(lines)} nodes alive, {num_dead} dead"]) + "\n"


def _own(member: Member) -> dict[str, str]:
    """Return the labels that node.json gave."""
    return {
        name: value
        for name, value in member.labels.items()
        if not name.startswith("ray.io/") and name not in (INSTANCE_LABEL, START_LABEL)
    }
