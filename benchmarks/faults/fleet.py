"""Several groups of one small model behind one gateway: their config, their processes, what they say of themselves.

Made to be broken: ranks restart in place as often as they die, and weights are of 8 bits so that two cores follow.
"""

import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from benchmarks.report import ROOT
from benchmarks.serve_process import role_of, served
from core.config import read_yaml

BASE_CONFIG = ROOT / "configs" / "tp2-two-replicas.yaml"
MODEL = "smollm2-135m"
POLL_S = 0.05
RECOVERY_TIMEOUT_S = 120.0
"""More than a group takes to start on two busy cores."""


@dataclass(frozen=True)
class FleetPlan:
    """What to serve; everything else is as in configs/tp2-two-replicas.yaml."""

    num_groups: int = 2
    world_size: int = 1
    """Ranks of a group."""
    kv_memory: str = "256MiB"
    """Per rank."""
    max_running: int = 32
    drain_timeout_s: float = 20.0
    graceful_shutdown_timeout_s: float = 30.0
    cpus_per_rank: float = 0.1
    """Ray's book-keeping only."""
    gateway_args: Mapping[str, Any] = field(default_factory=dict)
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Merged into `args` of the applications."""
    actor_resources: Mapping[str, float] = field(default_factory=dict)
    """What gateway and leaders ask of Ray besides CPU: ties them to a node."""

    def settings(self) -> dict[str, Any]:
        """Return the Serve config."""
        settings = read_yaml(BASE_CONFIG)
        gateway, model = settings["applications"]
        gateway["args"] |= self.gateway_args
        model["args"] = merged(merged(model["args"], self._own_model_args()), self.model_args)
        for application in settings["applications"]:
            for deployment in application["deployments"]:
                deployment["graceful_shutdown_timeout_s"] = self.graceful_shutdown_timeout_s
                if self.actor_resources:
                    deployment["ray_actor_options"]["resources"] = dict(self.actor_resources)
        model["deployments"][0]["num_replicas"] = self.num_groups
        return settings

    def write(self, folder: Path, name: str = "fleet.yaml") -> Path:
        """Write the Serve config; return its path."""
        path = folder / name
        path.write_text(yaml.safe_dump(self.settings()), encoding="utf-8")
        return path

    def _own_model_args(self) -> dict[str, Any]:
        return {
            "model": {"dtype": "bfloat16", "quantization": "int8"},
            "parallel": {"tensor_parallel_size": self.world_size, "threads_per_rank": 1},
            "cache": {"memory": self.kv_memory},
            "scheduler": {"max_running": self.max_running},
            "placement": {"cpus_per_rank": self.cpus_per_rank},
            "restart": {"max_attempts": 1000, "backoff_s": 0.1, "stable_after_s": 0},
            "drain_timeout_s": self.drain_timeout_s,
        }


class GroupSeen(NamedTuple):
    """A group as a gateway shows it."""

    group_id: str
    generation: int
    state: str

    @property
    def identity(self) -> tuple[str, int]:
        """Changes with every restart, in place or not."""
        return self.group_id, self.generation


class Fleet:
    """What can be asked of a running server, and its processes; only ever its own."""

    def __init__(self, url: str, root: psutil.Process) -> None:
        """`root`: the process that started the server."""
        self.url = url
        self._root = root

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return the living processes, oldest first, by role (serve_process.ROLES)."""
        found: dict[str, list[psutil.Process]] = {}
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.setdefault(role_of(process), []).append(process)
            except psutil.NoSuchProcess:
                continue
        return {role: sorted(processes, key=lambda one: one.pid) for role, processes in found.items()}

    def groups(self) -> list[GroupSeen]:
        """Return what `/readyz` tells of the groups, dead ones that are not forgotten yet among them.

        Empty while no gateway answers.
        """
        try:
            models = json.loads(self._get("/readyz"))["models"]
        except (OSError, HTTPException, ValueError, KeyError):
            return []
        groups = [group for model in models if model["model"] == MODEL for group in model["groups"]]
        return [GroupSeen(group["group_id"], group["generation"], group["state"]) for group in groups]

    def ready(self) -> set[tuple[str, int]]:
        """Return the identities of the groups that say they are ready."""
        return {group.identity for group in self.groups() if group.state == "ready"}

    def metric(self, name: str) -> dict[str, float]:
        """Return the values of a metric by its labels as text; empty for a metric that is not there."""
        return samples(self._get("/metrics"), name)

    def total(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        return sum(self.metric(name).values())

    def wait_until_ready(self, num_groups: int, timeout_s: float, besides: frozenset[tuple[str, int]]) -> float:
        """Return the seconds until `num_groups` are ready that are not among `besides`. Raises SystemExit."""
        started_s = time.monotonic()
        while len(self.ready() - besides) < num_groups:
            if time.monotonic() - started_s > timeout_s:
                raise SystemExit(f"{num_groups} groups were not ready within {timeout_s:g} s: {self.groups()}")
            time.sleep(POLL_S)
        return time.monotonic() - started_s

    def _get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.read().decode()


@contextmanager
def served_fleet(plan: FleetPlan) -> Iterator[Fleet]:
    """Yield a server whose groups are all ready; it is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="eagleray-fleet-") as folder,
        served(plan.write(Path(folder)), {}, is_direct=False) as server,
    ):
        fleet = Fleet(server.url, server.root)
        fleet.wait_until_ready(plan.num_groups, RECOVERY_TIMEOUT_S, besides=frozenset())
        yield fleet


def samples(exposition: str, name: str) -> dict[str, float]:
    """Return the samples of one metric in Prometheus' text format, by the text of their labels."""
    found: dict[str, float] = {}
    for line in exposition.splitlines():
        head, _, value = line.rpartition(" ")
        if head == name or head.startswith(name + "{"):
            found[head.removeprefix(name)] = float(value)
    return found


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`, mapping by mapping."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, Mapping) else value
    return result
