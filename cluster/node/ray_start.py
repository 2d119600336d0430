"""The command line and the environment of `ray start` on a node. Ports are fixed, so that firewalls can name them."""

import json
import os
import sys
from pathlib import Path

from cluster.node.config import GROUP_LABEL, INSTANCE_LABEL, START_LABEL, NodeConfig, RedisStore, RocksdbStore
from cluster.node.errors import BootFailed
from cluster.node.imds import Identity
from cluster.weights.config import CACHE_VARIABLE

GCS_PORT = 6379
DASHBOARD_PORT = 8265
TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
_NODE_PORTS = {
    "--node-manager-port": 6380,
    "--object-manager-port": 6381,
    "--dashboard-agent-grpc-port": 6382,
    "--runtime-env-agent-port": 6383,
    "--dashboard-agent-listen-port": 52365,
    "--metrics-export-port": 8090,
    "--min-worker-port": 10002,
    "--max-worker-port": 10999,
}
DRAIN_LIMIT_S = 120
"""How long a worker that is told to stop may finish what it does: as long as AWS warns before it takes a machine."""
_RECONNECT_S = 600
"""How long a worker goes on without the head: replacing a machine takes minutes, and Ray's default is one."""


def token_environment(token_path: Path) -> dict[str, str]:
    """Return what makes Ray, in whatever process, authenticate with the cluster's token."""
    return {"RAY_AUTH_MODE": "token", TOKEN_PATH_VARIABLE: str(token_path)}


def ray_environment(config: NodeConfig, state_folder: Path) -> dict[str, str]:
    """Return what `ray start`, and so every process of the node, gets beside its surroundings and the token."""
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's default of 15 lets anything else on the machine come first, and a worker may not lower it.
        "RAY_worker_niceness": "0",
        "AWS_DEFAULT_REGION": config.region,
        CACHE_VARIABLE: config.weights_cache,
    }
    if not config.is_head:
        return environment | {
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(_RECONNECT_S),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_LIMIT_S),
        }
    # A head has nowhere to drain to: what it starts, the next one takes over.
    return environment | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"} | _store_environment(config, state_folder)


def _store_environment(config: NodeConfig, state_folder: Path) -> dict[str, str]:
    if isinstance(config.gcs, RocksdbStore):
        return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(state_folder)}
    if isinstance(config.gcs, RedisStore):
        return {"RAY_REDIS_ADDRESS": config.gcs.address, "RAY_external_storage_namespace": config.cluster}
    return {}


def ray_command(config: NodeConfig, identity: Identity, start_id: str, executable: Path) -> list[str]:
    """Return the command line that runs Ray on this machine until it is ended."""
    if config.is_head:
        place = ["--head", "--port", str(GCS_PORT)]
        # Asked for by name: else a head whose dashboard did not start runs on without, and nothing can be deployed.
        place += ["--include-dashboard", "true", "--dashboard-host", "127.0.0.1"]
        place += ["--dashboard-port", str(DASHBOARD_PORT)]
    else:
        place = ["--address", gcs_address(config)]
    ports = [text for option, port in _NODE_PORTS.items() for text in (option, str(port))]
    # A head without a group computes nothing, whatever its machine has.
    work = [] if config.takes_work else ["--num-cpus", "0"]
    return [
        *(str(executable), "start", "--block", "--log-color", "false"),
        *place,
        *("--node-ip-address", identity.address),
        *ports,
        *work,
        *("--num-gpus", str(config.num_gpus)),
        *("--resources", json.dumps(config.resources)),
        *("--labels", ",".join(f"{name}={value}" for name, value in node_labels(config, identity, start_id).items())),
    ]


def node_labels(config: NodeConfig, identity: Identity, start_id: str) -> dict[str, str]:
    """Return the node's Ray labels: those of node.json, its instance, its start and its group."""
    ours = {INSTANCE_LABEL: identity.instance_id, START_LABEL: start_id} | (
        {GROUP_LABEL: config.group} if config.group else {}
    )
    return config.labels | ours


def gcs_address(config: NodeConfig) -> str:
    """Return where the cluster's GCS answers."""
    return f"{config.head_address}:{GCS_PORT}"


def find_ray() -> Path:
    """Return the `ray` program of this interpreter. Raises BootFailed."""
    executable = Path(sys.executable).with_name("ray")
    if not os.access(executable, os.X_OK):
        raise BootFailed(f"{executable} does not exist; install eagleray into the environment of {sys.executable}")
    return executable
