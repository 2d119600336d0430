"""What turns a machine into a node of its cluster, step by step, and keeps it one."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, TypeVar

from cluster.node.background import Background
from cluster.node.cluster_token import fetch_token, keep_token
from cluster.node.commands import Commands
from cluster.node.config import START_LABEL, NodeConfig, RocksdbStore
from cluster.node.dashboard import Dashboard
from cluster.node.devices import check_efa, check_gpus
from cluster.node.disks import Mount
from cluster.node.errors import BootFailed, NotYet, StopRequested
from cluster.node.imds import Identity, InstanceMetadata
from cluster.node.join import check_reachable, join_cluster
from cluster.node.launch_hook import LaunchHook
from cluster.node.members import ask_members
from cluster.node.patience import Patience
from cluster.node.ray_process import RayProcess, StartRay
from cluster.node.ray_start import (
    DRAIN_LIMIT_S,
    GCS_PORT,
    find_ray,
    gcs_address,
    ray_command,
    ray_environment,
    token_environment,
)
from cluster.node.serve_api import ServeApi
from cluster.node.serve_duty import ServeDuty
from cluster.node.state_volume import mount_state_volume
from cluster.node.weights_disk import mount_weights_disk

logger = logging.getLogger(__name__)

T = TypeVar("T")

_METADATA_LIMIT_S = 60.0
_SECRET_LIMIT_S = 300.0
_VOLUME_LIMIT_S = 600.0
_DEVICE_LIMIT_S = 120.0
_LOOK_S = 1.0
_STOP_LIMIT_S = DRAIN_LIMIT_S + 30.0


class Folders(NamedTuple):
    """Where a node keeps what it needs beside the weights."""

    run: Path = Path("/run/eagleray")
    """In memory: the token, and what `ray start` printed."""
    state: Path = Path("/var/lib/eagleray/gcs")
    """The head's volume is mounted here."""

    @property
    def token(self) -> Path:
        """The cluster's token."""
        return self.run / "token"

    @property
    def ray_log(self) -> Path:
        """What `ray start` printed."""
        return self.run / "ray-start.log"


@dataclass(frozen=True)
class Machine:
    """What a boot acts on; tests put recordings here."""

    commands: Commands
    metadata: InstanceMetadata
    aws: Callable[[str, str], Any]
    """Service and region to its client."""
    start_ray: StartRay
    run_loops: Callable[[NodeConfig, Event], None]
    """What runs beside Ray until the event is set; blocks."""
    patience: Patience
    folders: Folders
    has_devices: bool
    """False: disks, driver and EFA are not looked at; folders stand in for disks."""


class Boot:
    """One boot of one machine. Setting `stop` ends it in order, at whatever step it is."""

    def __init__(self, config: NodeConfig, machine: Machine, stop: Event) -> None:
        self._config = config
        self._machine = machine
        self._patience = machine.patience
        self._stop = stop

    def run(self) -> None:
        """Make this machine a node and keep it one until told to stop; blocks.

        Raises BootFailed, also when Ray ends by itself; whoever started this process starts it again.
        """
        with contextlib.suppress(StopRequested):
            identity = self._step("identity", self._identify)
            hook = self._launch_hook(identity)
            try:
                self._step("token", self._get_token)
                self._step("weights disk", self._mount_weights)
                self._step("state volume", self._mount_state)
                self._step("devices", self._check_devices)
                ray = self._step("ray", lambda: self._join(identity))
            except BootFailed as error:
                if hook:
                    hook.abandon(error.message)
                raise
            with self._stopped_at_end(ray):
                logger.info("node is ready", extra={"role": self._config.role, "address": identity.address})
                self._attend(ray, hook)

    def _step(self, name: str, action: Callable[[], T]) -> T:
        """Return what the step returns, and log how long it took or why it failed."""
        started_s = time.monotonic()
        try:
            result = action()
        except BootFailed as error:
            seconds = round(time.monotonic() - started_s, 2)
            logger.error("boot step failed", extra={"step": name, "seconds": seconds, "error": error.message})
            raise
        logger.info("boot step done", extra={"step": name, "seconds": round(time.monotonic() - started_s, 2)})
        return result

    def _identify(self) -> Identity:
        return self._patience.until(self._machine.metadata.identify, _METADATA_LIMIT_S)

    def _launch_hook(self, identity: Identity) -> LaunchHook | None:
        name, group = self._config.launch_hook, self._config.autoscaling_group
        if not name or not group:
            return None
        autoscaling = self._machine.aws("autoscaling", self._config.region)
        return LaunchHook(
            autoscaling, name=name, group=group, instance_id=identity.instance_id, patience=self._patience
        )

    def _get_token(self) -> None:
        secrets = self._machine.aws("secretsmanager", self._config.region)
        token = self._patience.until(lambda: fetch_token(secrets, self._config.token_secret_arn), _SECRET_LIMIT_S)
        keep_token(token, self._machine.folders.token)
        # Ray reads it in every process: `ray start`, the loops in our threads, the programs that steps run.
        os.environ.update(token_environment(self._machine.folders.token))

    def _mount_weights(self) -> None:
        folder = Path(self._config.weights_cache)
        if not self._config.takes_work:
            return
        if not self._machine.has_devices:
            folder.mkdir(parents=True, exist_ok=True)
            return
        _log_mount(mount_weights_disk(self._machine.commands, folder))

    def _mount_state(self) -> None:
        store, folder = self._config.gcs, self._machine.folders.state
        if not self._config.is_head or not isinstance(store, RocksdbStore):
            return
        if not self._machine.has_devices:
            folder.mkdir(parents=True, exist_ok=True)
            return
        commands, volume = self._machine.commands, store.volume
        _log_mount(self._patience.until(lambda: mount_state_volume(commands, volume, folder), _VOLUME_LIMIT_S))

    def _check_devices(self) -> None:
        if not self._machine.has_devices:
            logger.warning("devices are not looked at", extra={"num_gpus": self._config.num_gpus})
            return
        commands, num_gpus = self._machine.commands, self._config.num_gpus
        self._patience.until(lambda: check_gpus(commands, num_gpus), _DEVICE_LIMIT_S)
        if self._config.efa:
            self._patience.until(lambda: check_efa(commands), _DEVICE_LIMIT_S)

    def _join(self, identity: Identity) -> RayProcess:
        executable = find_ray()
        environment = ray_environment(self._config, self._machine.folders.state)

        def start(start_id: str) -> RayProcess:
            if not self._config.is_head:
                check_reachable(self._config.head_address, GCS_PORT)
            return self._machine.start_ray(ray_command(self._config, identity, start_id, executable), environment)

        def check_member(start_id: str) -> None:
            members = ask_members(self._machine.commands, gcs_address(self._config))
            if not any(member.is_alive and member.labels.get(START_LABEL) == start_id for member in members):
                raise NotYet(f"the cluster does not count {identity.instance_id} as alive")

        return join_cluster(start, check_member, self._patience)

    def _attend(self, ray: RayProcess, hook: LaunchHook | None) -> None:
        """Run what a node does beside Ray until Ray ends or a stop is asked for. Raises BootFailed, StopRequested."""
        background = Background()
        try:
            if hook:
                background.run("launch hook", hook.carry_on)
            background.run("loops", lambda: self._machine.run_loops(self._config, self._stop))
            if self._config.serve_config:
                duty = self._serve_duty(self._config.serve_config)
                background.run("serve", lambda: self._step("serve", duty.fulfil))
            while ray.exit_code() is None:
                background.revive()
                self._patience.pause(_LOOK_S)
        finally:
            self._stop.set()
            background.join(_LOOK_S)
        raise BootFailed(
            f"Ray of this node ended with {ray.exit_code()}; its last words: {ray.last_words()}; more is in "
            "/tmp/ray/session_latest/logs"
        )

    def _serve_duty(self, location: str) -> ServeDuty:
        api = ServeApi(Dashboard(self._machine.folders.token))
        return ServeDuty(self._config, location, api, self._machine.commands, self._patience)

    @contextlib.contextmanager
    def _stopped_at_end(self, ray: RayProcess) -> Iterator[None]:
        try:
            yield
        finally:
            started_s = time.monotonic()
            ray.stop(_STOP_LIMIT_S)
            logger.info("Ray of this node stopped", extra={"seconds": round(time.monotonic() - started_s, 2)})


def _log_mount(found: Mount) -> None:
    logger.info("folder is there", extra={"folder": str(found.folder), "source": found.source or "plain directory"})
