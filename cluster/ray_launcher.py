"""Ranks as Ray actors inside one placement group that outlives them. A seat is one of its bundles."""

import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import psutil
import ray
from ray.actor import ActorClass, ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config import ReplicaGroupConfig, RestartConfig
from cluster.placement import Resources, bundle_of_rank, describe_room, rank_resources
from cluster.rank_actor import RankActor
from cluster.weights.config import WeightsConfig
from core.cores import usable_cores
from core.errors import InvalidConfig, NotReady, PlacementImpossible
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from engine.ranks import RankPool
from parallel.rank.messages import RankSpec

logger = logging.getLogger(__name__)

_WAIT_SLICE_S = 0.5
_STOP_TIMEOUT_S = 10.0
_DEATH_REPORT_S = 0.02
_CLOSED = "the replica group was closed while it waited for room"


class Room(NamedTuple):
    """A placement group that exists, with rank order settled."""

    group: PlacementGroup
    bundle_of_seat: list[int]
    """The first seats are the ranks', in their order; a spare's comes last."""
    resources: Resources
    leader_host: str
    """Address of the leader that every rank's node can reach; loopback when all are on the leader's node."""
    max_ranks_per_node: int
    is_one_node: bool
    """Whether leader and ranks are on the same one."""


class Seated(NamedTuple):
    """An actor, and the call in which it is a rank."""

    actor: ActorHandle
    run: ray.ObjectRef


class RayLauncher:
    """Rank actors; a `RankLauncher`."""

    def __init__(self, room: Room, weights: WeightsConfig) -> None:
        self._room = room
        self._weights = weights
        self._lock = threading.Lock()
        self._seated: dict[int, Seated] = {}
        self._left: set[int] = set()
        """Seats whose actors were killed."""

    def launch(self, specs: Sequence[RankSpec]) -> None:
        """Start one actor per spec in the bundle of its seat; does not wait. Raises StartupError."""
        with self._lock:
            for spec in specs:
                actor = self._actor_class(self._room.bundle_of_seat[spec.seat]).remote()
                self._seated[spec.seat] = Seated(cast(ActorHandle, actor), actor.run.remote(spec, self._weights))
                self._left.discard(spec.seat)

    def end(self, seat: int, pid: int | None = None) -> None:
        """Kill the seat's actor and wait until Ray has seen it end; the bundle is free by then."""
        # Ray asks a process to leave before it kills it; one that is frozen would be there for a while, and its peers
        # would wait for it.
        if pid is not None and self._room.is_one_node:
            _kill_rank(pid)
        self._end([seat])

    def stop(self) -> None:
        """Kill every actor and wait until Ray has seen them end; the bundles are free by then."""
        self._end(list(self._seated))

    def _end(self, seats: Sequence[int]) -> None:
        with self._lock:
            ending = [self._seated[seat] for seat in seats if seat in self._seated.keys() - self._left]
            self._left.update(seats)
        for seated in ending:
            ray.kill(seated.actor, no_restart=True)
        if not ending:
            return
        runs = [seated.run for seated in ending]
        _, running = ray.wait(runs, num_returns=len(runs), timeout=_STOP_TIMEOUT_S, fetch_local=False)
        if running:
            logger.warning("ranks still running after kill", extra={"num_ranks": len(running)})

    def describe_exit(self, seat: int) -> str | None:
        """Return what Ray knows about the end of the seat's process, None while it runs."""
        with self._lock:
            seated = self._seated.get(seat)
        if seated is None:
            return None
        try:
            code = ray.get(seated.run, timeout=_DEATH_REPORT_S)
        except GetTimeoutError:
            return None
        except RayActorError as error:
            return " ".join(str(error).split())
        except RayError as error:
            return str(error).strip().splitlines()[-1]
        return f"the rank left with exit code {code}"

    def _actor_class(self, bundle: int) -> ActorClass:
        resources = self._room.resources
        return ray.remote(RankActor).options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=self._room.group, placement_group_bundle_index=bundle
            ),
        )


class RayRanks:
    """A `RankSource`: reserves room once, then has all ranks' actors in the same bundles."""

    def __init__(self, config: ReplicaGroupConfig, name: str) -> None:
        """`name`: of the group, for its incidents."""
        self._config = config.placement
        self._parallel = config.parallel
        self._restart = config.restart
        self._weights = config.weights
        self._name = name
        self._device = resolve_device(config.parallel.device)
        self._resources = rank_resources(config.placement, self._device)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._room: Room | None = None

    def pool(self, generation: int) -> RankPool:
        """Return new ranks, whose first generation this is; blocks for room on first use.

        Raises PlacementImpossible, InvalidConfig, NotReady once closed.
        """
        with self._lock:
            if self._closing.is_set():
                raise NotReady(_CLOSED)
            if self._room is None:
                self._room = self._reserve()
            room = self._room
        options = PoolOptions(
            device=self._device,
            # Of the leader's node; nodes of one cluster that serve one model are taken to be alike.
            num_threads=self._parallel.threads_per_rank or max(1, usable_cores() // room.max_ranks_per_node),
            leader_host=room.leader_host,
            collective_timeout_s=self._parallel.collective_timeout_s,
            frozen_after_s=self._restart.frozen_after_s,
            num_spares=self._restart.warm_spares,
            incidents=incident_folder(self._restart),
            name=self._name,
        )
        launcher = RayLauncher(room, self._weights)
        return SocketRankPool(launcher, self._parallel.tensor_parallel_size, generation, options)

    def close(self) -> None:
        """Give the bundles back. Idempotent, any thread."""
        self._closing.set()
        with self._lock:
            if self._room is not None:
                remove_placement_group(self._room.group)
                self._room = None

    def _reserve(self) -> Room:
        group = self._ask()
        if not self._wait(group):
            remove_placement_group(group)
            if self._closing.is_set():
                raise NotReady(_CLOSED)
            raise PlacementImpossible(self._explain())
        nodes: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
        leader_node = ray.get_runtime_context().get_node_id()
        is_one_node = all(node == leader_node for node in nodes.values())
        self._check_spares(group, is_one_node)
        host = "127.0.0.1" if is_one_node else ray.util.get_node_ip_address()
        logger.info("ranks placed", extra={"num_nodes": len(set(nodes.values())), "leader_host": host})
        seats = bundle_of_rank(nodes, leader_node)
        nodes_of_ranks = [nodes[bundle] for bundle in seats[: self._parallel.tensor_parallel_size]]
        return Room(group, seats, self._resources, host, max(Counter(nodes_of_ranks).values()), is_one_node)

    def _check_spares(self, group: PlacementGroup, is_one_node: bool) -> None:
        if self._restart.warm_spares and (self._device != "cpu" or not is_one_node):
            remove_placement_group(group)
            where = "several nodes" if self._device == "cpu" else self._device
            raise InvalidConfig(f"restart.warm_spares=1 is for CPUs of one node, and the ranks are on {where}; use 0")

    def _ask(self) -> PlacementGroup:
        bundles = [self._resources] * (self._parallel.tensor_parallel_size + self._restart.warm_spares)
        label = self._config.topology_label
        try:
            if label is None:
                return placement_group(bundles, strategy=self._config.strategy)
            return placement_group(bundles, topology_strategy={label: "STRICT_PACK"})
        except ValueError as error:
            raise PlacementImpossible(f"Ray refuses the placement: {error}") from None

    def _wait(self, group: PlacementGroup) -> bool:
        num_slices = max(1, round(self._config.timeout_s / _WAIT_SLICE_S))
        return any(group.wait(_WAIT_SLICE_S) for _ in range(num_slices) if not self._closing.is_set())

    def _explain(self) -> str:
        room = describe_room(
            self._resources, self._parallel.tensor_parallel_size, ray.cluster_resources(), ray.available_resources()
        )
        how = f"label {self._config.topology_label}" if self._config.topology_label else self._config.strategy
        return (
            f"no room for the ranks after {self._config.timeout_s:g} s: asked for {room} ({how}); "
            "add nodes, lower tensor_parallel_size, or relax `placement`"
        )


def _kill_rank(pid: int) -> None:
    """Kill a process of this machine if it is a rank: its number may mean another one by now."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        process = psutil.Process(pid)
        if " ".join(process.cmdline()).startswith(f"ray::{RankActor.__name__}"):
            process.kill()
            # Its peers are free when it is gone, which takes as long as its memory takes to be freed.
            process.wait(_STOP_TIMEOUT_S)


def incident_folder(config: RestartConfig) -> Path:
    """Return where incidents are kept on this machine."""
    if config.incident_folder is not None:
        return Path(config.incident_folder).expanduser()
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "eagleray" / "incidents"


def resolve_device(wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Return where ranks run: `auto` is cuda when the cluster has a GPU."""
    if wanted == "auto":
        return "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"
    return wanted
