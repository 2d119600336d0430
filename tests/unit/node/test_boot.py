"""The steps of a boot, their order, and what becomes of a machine that fails at one."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import boto3
import msgspec
import pytest
from moto import mock_aws

from cluster.node.boot import Boot, Folders, Machine
from cluster.node.config import NodeConfig
from cluster.node.errors import BootFailed
from cluster.node.imds import Identity
from cluster.node.members import Member
from tests.support.node_machines import (
    HEAD,
    WORKER,
    FakeMetadata,
    FakeRay,
    RayStarts,
    RecordedCommands,
    quick_patience,
)

TOKEN = "3f2a9c5e7b1d4608a2c4e6f8091b3d5f"
IDENTITY = Identity("i-0abc", "127.0.0.1")
GPUS = "".join(f"GPU {number}: NVIDIA H100\n" for number in range(8))


def alive(start_id: str) -> str:
    """What the GCS tells of a cluster with the node of one start."""
    labels = {"eagleray/instance": "i-0abc", "eagleray/start": start_id}
    return msgspec.json.encode([Member("a1", "127.0.0.1", True, {}, labels)]).decode()


class RecordedGroup:
    """The Auto Scaling API, of which a boot uses one action."""

    def __init__(self) -> None:
        self.results: list[str] = []

    def complete_lifecycle_action(self, LifecycleActionResult: str, **_: str) -> None:
        self.results.append(LifecycleActionResult)


class Bench:
    """A machine under test and all it was asked to do."""

    def __init__(self, folder: Path, secret_arn: str) -> None:
        self.stop = Event()
        self.commands = RecordedCommands(
            {
                "lsblk": '{"blockdevices": []}',
                "nvidia-smi": GPUS,
                "cluster.node status": alive("this"),
            }
        )
        self.group = RecordedGroup()
        self.folders = Folders(run=folder / "run", state=folder / "state")
        self.loops: list[str] = []
        self.metadata_failures = 0
        self.common = {
            "token_secret_arn": secret_arn,
            "weights_cache": str(folder / "weights"),
            "head_address": "127.0.0.1",
        }

    def boot(self, data: dict[str, object], *processes: FakeRay, has_devices: bool = True) -> RayStarts:
        """Boot until the given Ray processes have ended, or a stop."""
        starts = RayStarts(*processes)
        machine = Machine(
            commands=self.commands,
            metadata=FakeMetadata(IDENTITY, self.metadata_failures),
            aws=lambda service, region: (
                self.group if service == "autoscaling" else boto3.client(service, region_name=region)
            ),
            start_ray=starts,
            run_loops=self._run_loops,
            patience=quick_patience(self.stop),
            folders=self.folders,
            has_devices=has_devices,
        )
        Boot(NodeConfig.parse(data | self.common, "test"), machine, self.stop).run()
        return starts

    def ray_that_stops_the_node(self) -> FakeRay:
        """Ray that runs; the second look at it finds the node told to stop."""
        looks: list[int] = []

        def look() -> None:
            looks.append(1)
            if len(looks) == 2:
                self.stop.set()

        return FakeRay(on_look=look)

    def _run_loops(self, config: NodeConfig, stop: Event) -> None:
        stop.wait(10)
        self.loops.append(f"{config.role} stopped")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    # Set by a boot for the processes it starts; restored by this after the test.
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    # The head of these tests answers on every port.
    monkeypatch.setattr("cluster.node.boot.check_reachable", lambda host, port: None)
    monkeypatch.setattr("cluster.node.join.secrets.token_hex", lambda num_bytes: "this")
    with mock_aws(), tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        secrets = boto3.client("secretsmanager", region_name="eu-west-1")
        yield Bench(Path(folder), secrets.create_secret(Name="token", SecretString=TOKEN)["ARN"])


def steps(caplog: pytest.LogCaptureFixture, message: str = "boot step done") -> list[str]:
    return [record.step for record in caplog.records if record.getMessage() == message]


def test_worker_goes_through_every_step_and_is_put_in_service(bench: Bench, caplog: pytest.LogCaptureFixture):
    ray = bench.ray_that_stops_the_node()
    with caplog.at_level(logging.INFO, "cluster.node.boot"):
        starts = bench.boot(WORKER, ray)
    assert steps(caplog) == ["identity", "token", "weights disk", "state volume", "devices", "ray"]
    assert bench.folders.token.read_text() == TOKEN
    assert "--address" in starts.commands[0]
    assert bench.group.results == ["CONTINUE"]
    assert bench.loops == ["worker stopped"]
    assert ray.is_stopped


def test_every_step_says_how_long_it_took(bench: Bench, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "cluster.node.boot"):
        bench.boot(WORKER, bench.ray_that_stops_the_node())
    done = [record for record in caplog.records if record.getMessage() == "boot step done"]
    assert all(record.seconds >= 0 for record in done)


def test_worker_that_lacks_a_gpu_is_given_back_before_it_starts_ray(bench: Bench, caplog: pytest.LogCaptureFixture):
    bench.commands.answers["nvidia-smi"] = GPUS.splitlines()[0]
    with caplog.at_level(logging.INFO, "cluster.node.boot"), pytest.raises(BootFailed, match="shows 1 GPUs"):
        bench.boot(WORKER)
    assert bench.group.results == ["ABANDON"]
    assert steps(caplog, "boot step failed") == ["devices"]


@pytest.mark.parametrize("known", ["[]", alive("former")], ids=["no node", "a former start of this machine"])
def test_worker_that_the_cluster_does_not_count_is_given_back(bench: Bench, known: str):
    bench.commands.answers["cluster.node status"] = known
    processes = [FakeRay() for _ in range(20)]
    with pytest.raises(BootFailed, match="does not count i-0abc as alive"):
        bench.boot(WORKER, *processes)
    assert bench.group.results == ["ABANDON"]
    assert processes[0].is_stopped


def test_ray_that_ends_by_itself_ends_the_boot_with_its_last_words(bench: Bench):
    ray = FakeRay(exit_code=1, looks=3)
    with pytest.raises(BootFailed, match="Ray of this node ended with 1; its last words: Exception: The current node"):
        bench.boot(WORKER, ray)
    assert ray.is_stopped
    assert bench.loops == ["worker stopped"]


def test_stop_during_a_wait_starts_nothing_and_gives_nothing_back(bench: Bench):
    bench.metadata_failures = 1
    bench.stop.set()
    assert bench.boot(WORKER).commands == []
    assert bench.group.results == []


def test_metadata_that_comes_late_is_waited_for(bench: Bench):
    bench.metadata_failures = 3
    assert len(bench.boot(WORKER, bench.ray_that_stops_the_node()).commands) == 1


def test_head_keeps_its_state_on_the_volume(bench: Bench):
    volume = '{"path": "/dev/nvme1n1", "serial": "vol0abc", "mountpoints": [null]}'
    bench.commands.answers |= {"lsblk": f'{{"blockdevices": [{volume}]}}', "blkid": "", "mkfs.xfs": "", "mount": ""}
    head = HEAD | {"gcs": {"kind": "rocksdb", "volume": "vol-0abc"}}
    starts = bench.boot(head, bench.ray_that_stops_the_node())
    assert f"mount -o noatime /dev/nvme1n1 {bench.folders.state}" in bench.commands.lines
    assert starts.environments[0]["RAY_gcs_storage_path"] == str(bench.folders.state)
    assert "--head" in starts.commands[0]


def test_machine_that_only_plays_a_node_keeps_its_disks_and_drivers_alone(bench: Bench):
    head = HEAD | {"gcs": {"kind": "rocksdb", "volume": "/dev/sdf"}, "group": "all", "num_gpus": 4, "efa": True}
    bench.boot(head, bench.ray_that_stops_the_node(), has_devices=False)
    assert all("cluster.node status" in line for line in bench.commands.lines)
    assert bench.folders.state.is_dir()
    assert Path(bench.common["weights_cache"]).is_dir()
