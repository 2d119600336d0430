"""`ray start` gets fixed ports, the node's labels and resources, and an environment that survives the head's loss."""

from pathlib import Path

import pytest

from cluster.node.config import NodeConfig
from cluster.node.imds import Identity
from cluster.node.ray_start import ray_command, ray_environment, token_environment
from tests.support.node_machines import HEAD, WORKER

IDENTITY = Identity("i-0abc", "10.64.0.7")
STATE = Path("/var/lib/eagleray/gcs")


def options(data: dict[str, object]) -> dict[str, str]:
    """The command line as option to value; an option without one has the next option as value."""
    words = ray_command(NodeConfig.parse(data, "test"), IDENTITY, "5e1f", Path("/opt/eagleray/bin/ray"))
    assert words[:3] == ["/opt/eagleray/bin/ray", "start", "--block"]
    return dict(zip(words, [*words[1:], ""], strict=True))


def environment(data: dict[str, object]) -> dict[str, str]:
    return ray_environment(NodeConfig.parse(data, "test"), STATE)


def test_every_process_of_a_node_keeps_weights_where_the_disks_are():
    assert environment(WORKER)["EAGLERAY_WEIGHTS_CACHE"] == "/var/lib/eagleray/weights"


def test_head_serves_its_dashboard_on_loopback_and_computes_nothing():
    found = options(HEAD)
    assert found["--port"] == "6379"
    assert found["--dashboard-host"] == "127.0.0.1"
    assert found["--include-dashboard"] == "true", "without it, a dashboard that does not start is not missed"
    assert found["--num-cpus"] == "0"
    assert found["--num-gpus"] == "0"
    assert "--address" not in found


def test_head_with_a_group_is_a_worker_too():
    found = options(HEAD | {"group": "all", "num_gpus": 1})
    assert "--num-cpus" not in found
    assert found["--num-gpus"] == "1"
    assert "eagleray/group=all" in found["--labels"]


def test_worker_joins_the_head_with_what_it_has():
    found = options(WORKER | {"resources": {"nvlink": 1}, "labels": {"zone": "a"}})
    assert found["--address"] == "10.64.0.10:6379"
    assert found["--node-ip-address"] == "10.64.0.7"
    assert found["--num-gpus"] == "8"
    assert found["--resources"] == '{"nvlink": 1.0}'
    assert found["--labels"] == "zone=a,eagleray/instance=i-0abc,eagleray/start=5e1f,eagleray/group=h100"
    assert not {"--head", "--port", "--dashboard-host", "--include-dashboard"} & found.keys()


@pytest.mark.parametrize("data", [HEAD, WORKER], ids=["head", "worker"])
def test_ports_are_the_ones_that_firewalls_know(data: dict[str, object]):
    found = options(data)
    ports = {name: found[name] for name in found if name.endswith("-port") and "dashboard" not in name}
    assert (
        ports.items()
        >= {
            "--node-manager-port": "6380",
            "--object-manager-port": "6381",
            "--metrics-export-port": "8090",
            "--min-worker-port": "10002",
            "--max-worker-port": "10999",
        }.items()
    )


def test_worker_waits_ten_minutes_for_a_new_head():
    assert environment(WORKER)["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600"
    assert "RAY_gcs_rpc_server_reconnect_timeout_s" not in environment(HEAD)


def test_worker_drains_when_it_is_told_to_stop_and_a_head_does_not():
    assert environment(WORKER)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "120"
    assert environment(HEAD)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "0"


def test_state_of_the_cluster_goes_where_the_config_says():
    rocksdb = environment(HEAD | {"gcs": {"kind": "rocksdb", "volume": "/dev/sdf"}})
    assert rocksdb["RAY_gcs_storage"] == "rocksdb"
    assert rocksdb["RAY_gcs_storage_path"] == str(STATE)
    redis = environment(HEAD | {"gcs": {"kind": "redis", "address": "rediss://redis.internal:6379"}})
    assert redis["RAY_REDIS_ADDRESS"] == "rediss://redis.internal:6379"
    assert redis["RAY_external_storage_namespace"] == "smoke"
    assert not {"RAY_gcs_storage", "RAY_REDIS_ADDRESS"} & environment(HEAD).keys()


def test_token_is_named_by_its_file_and_never_on_a_command_line():
    assert token_environment(Path("/run/eagleray/token")) == {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/run/eagleray/token",
    }
    assert "token" not in " ".join(options(WORKER)).lower()
