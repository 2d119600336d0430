"""Ranks as Ray actors inside one placement group that outlives every generation of them."""

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

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

from cluster.config import PlacementConfig
from cluster.placement import Resources, bundle_of_rank, describe_room, rank_resources
from cluster.rank_actor import RankActor
from core.cores import usable_cores
from core.errors import NotReady, PlacementImpossible
from engine.config import ParallelConfig
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from engine.ranks import RankPool
from parallel.rank.messages import RankSpec

logger = logging.getLogger(__name__)

_WAIT_SLICE_S = 0.5
_STOP_TIMEOUT_S = 10.0
_DEATH_REPORT_S = 0.2
_CLOSED = "the replica group was closed while it waited for room"


class Room(NamedTuple):
    """A placement group that exists, with rank order settled."""

    group: PlacementGroup
    bundle_of_rank: list[int]
    resources: Resources
    leader_host: str
    """Address of the leader that every rank's node can reach; loopback when all are on the leader's node."""
    max_ranks_per_node: int


class RayLauncher:
    """One generation of rank actors; a `RankLauncher`."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._actors: list[ActorHandle] = []
        self._runs: dict[int, ray.ObjectRef] = {}

    def launch(self, specs: Sequence[RankSpec]) -> None:
        """Start one actor per spec in the bundle of its rank; does not wait. Raises StartupError."""
        with self._lock:
            for spec in specs:
                actor = self._actor_class(self._room.bundle_of_rank[spec.rank]).remote()
                self._actors.append(cast(ActorHandle, actor))
                self._runs[spec.rank] = actor.run.remote(spec)

    def stop(self) -> None:
        """Kill every actor and wait until Ray has seen it end; the bundle is free for the next generation by then."""
        with self._lock:
            actors, runs = self._actors, list(self._runs.values())
            self._actors = []
        for actor in actors:
            ray.kill(actor, no_restart=True)
        if not actors:
            return
        _, running = ray.wait(runs, num_returns=len(runs), timeout=_STOP_TIMEOUT_S, fetch_local=False)
        if running:
            logger.warning("ranks still running after kill", extra={"num_ranks": len(running)})

    def describe_exit(self, rank: int) -> str | None:
        """Return what Ray knows about the end of the rank's process, None while it runs."""
        run = self._runs.get(rank)
        if run is None:
            return None
        try:
            code = ray.get(run, timeout=_DEATH_REPORT_S)
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
    """A `RankSource`: reserves room once, then gives every generation its actors in the same bundles."""

    def __init__(self, config: PlacementConfig, parallel: ParallelConfig) -> None:
        self._config = config
        self._parallel = parallel
        self._device = resolve_device(parallel.device)
        self._resources = rank_resources(config, self._device)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._room: Room | None = None

    def pool(self, generation: int) -> RankPool:
        """Return this generation's pool; blocks for room on first use.

        Raises PlacementImpossible, NotReady once closed.
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
        )
        return SocketRankPool(RayLauncher(room), self._parallel.tensor_parallel_size, generation, options)

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
        host = "127.0.0.1" if is_one_node else ray.util.get_node_ip_address()
        logger.info("ranks placed", extra={"num_nodes": len(set(nodes.values())), "leader_host": host})
        max_ranks_per_node = max(Counter(nodes.values()).values())
        return Room(group, bundle_of_rank(nodes, leader_node), self._resources, host, max_ranks_per_node)

    def _ask(self) -> PlacementGroup:
        bundles = [self._resources] * self._parallel.tensor_parallel_size
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


def resolve_device(wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Return where ranks run: `auto` is cuda when the cluster has a GPU."""
    if wanted == "auto":
        return "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"
    return wanted
