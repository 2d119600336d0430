"""`python -m deployments.doctor.cluster.ask_ray ADDRESS`: joins a Ray cluster for a moment, writes its facts as JSON.

A process of its own, because joining may hang and cannot be given up inside one.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import ray
from ray import serve
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.serve.schema import ServeStatus
from ray.util import placement_group_table

from deployments.doctor.cluster.facts import ApplicationFacts, ClusterFacts, NodeFacts, PlacementFacts

T = TypeVar("T")

_RPC_TIMEOUT_S = 15
_WAITING = ("PENDING", "RESCHEDULING", "PREPARED")


def main(address: str) -> int:
    """Write the facts to stdout and return 0, or why Ray lets nobody in to stderr and return 1."""
    try:
        ray.init(address=address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError) as error:
        # Ray puts a whole traceback into its message; what happened is its last line.
        causes = [str(part).strip().splitlines()[-1] for part in (error, error.__context__) if str(part).strip()]
        sys.stderr.write(": ".join(causes) + "\n")
        return 1
    try:
        sys.stdout.write(msgspec.json.encode(_facts()).decode() + "\n")
    finally:
        ray.shutdown()
    return 0


def _facts() -> ClusterFacts:
    gaps: list[str] = []
    status = _asked("Serve", serve.status, ServeStatus(), gaps)
    return ClusterFacts(
        ray_version=ray.__version__,
        nodes=_nodes(_asked("which nodes drain", _draining, set[str](), gaps)),
        waiting=[_placement(group) for group in placement_group_table().values() if group["state"] in _WAITING],
        applications=[
            ApplicationFacts(
                name,
                application.status.value,
                " ".join([application.message, *(d.message for d in application.deployments.values())]).strip(),
            )
            for name, application in status.applications.items()
        ],
        proxies={node: state.value for node, state in status.proxies.items()},
        free={name: float(amount) for name, amount in ray.available_resources().items()},
        total={name: float(amount) for name, amount in ray.cluster_resources().items()},
        gaps=gaps,
    )


def _asked(what: str, ask: Callable[[], T], otherwise: T, gaps: list[str]) -> T:
    """Return the answer; `otherwise`, and why in `gaps`, if there is none: what else is known is told all the same."""
    try:
        return ask()
    # A boundary as in probing: Ray raises what it likes, and a slow controller must not hide the nodes.
    except Exception as error:  # noqa: BLE001
        gaps.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return otherwise


def _nodes(draining: set[str]) -> list[NodeFacts]:
    return [
        NodeFacts(
            address=node["NodeManagerAddress"],
            is_alive=node["Alive"],
            is_draining=node["NodeID"] in draining,
            why_dead="" if node["Alive"] else node.get("DeathReasonMessage", ""),
            gpus=node["Resources"].get("GPU", 0.0),
            cpus=node["Resources"].get("CPU", 0.0),
        )
        for node in ray.nodes()
    ]


def _draining() -> set[str]:
    status = get_cluster_status(ray.get_runtime_context().gcs_address, _RPC_TIMEOUT_S)
    nodes = [*status.active_nodes, *status.idle_nodes]
    return {node.node_id for node in nodes if node.node_status == "DRAINING" and node.node_id}


def _placement(group: Mapping[str, Any]) -> PlacementFacts:
    return PlacementFacts(group["placement_group_id"], group["state"], list(group["bundles"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
