"""Which group the ranks form: memory that all of them map if they are on one machine, else torch.distributed."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import msgspec
import torch
from torch._C._distributed_c10d import PrefixStore, Store

from parallel.cpu.library import KernelLibrary, KernelsUnavailable
from parallel.groups.base import TPGroup
from parallel.groups.distributed import DistributedGroup
from parallel.groups.shared_memory import SegmentAddress, SharedMemoryGroup, new_segment, open_segment
from parallel.groups.store import tell_all
from parallel.groups.symmetric import SymmetricGroup, SymmetricUnavailable, TorchSymmetricSums

T = TypeVar("T")


class NotShared(Exception):
    """The ranks cannot share memory; the message says why. Raised by every rank or by none."""


def join_group(
    *,
    rank: int,
    world_size: int,
    host: str,
    node: str,
    store: Store,
    device: torch.device,
    timeout_s: float,
    generation: int,
) -> TPGroup:
    """Return the fastest group that all ranks can be in, once every rank joined; blocks. Raises RankDied.

    `node` is the same for ranks that share a machine's memory; the rest is as `DistributedGroup.join` takes it.
    """
    reason, sums = "", None
    if device.type == "cpu":
        sharing = Sharing(PrefixStore(f"generation-{generation}/sharing", store), rank, world_size)
        try:
            return sharing.join(node, timeout_s)
        except NotShared as error:
            reason = str(error)
    else:
        try:
            sums = TorchSymmetricSums.join(store, rank, world_size, node, device, generation)
        except SymmetricUnavailable as error:
            reason = str(error)
    group = DistributedGroup.join(
        rank=rank,
        world_size=world_size,
        host=host,
        store=store,
        device=device,
        timeout_s=timeout_s,
        generation=generation,
        reason=reason,
    )
    return group if sums is None else SymmetricGroup(group, sums)


class Offer(msgspec.Struct, frozen=True):
    """A segment that a rank has made, and who could use it."""

    node: str
    segment: SegmentAddress


class Sharing:
    """The ranks' way into a group in shared memory. They take each step together, or give up together."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size

    def join(self, node: str, timeout_s: float) -> SharedMemoryGroup:
        """Return the group, after which no rank needs the store. Raises NotShared, RankDied."""
        library = self._agree("library", KernelLibrary.load)
        with ExitStack() as until_shared, ExitStack() as undo:
            segment = self._agree("segment", lambda: until_shared.enter_context(new_segment(library, self._world_size)))
            offers = self._offers(Offer(node, segment))

            def enter() -> SharedMemoryGroup:
                pids = [offer.segment.pid for offer in offers]
                with open_segment(offers[0].segment) as descriptor:
                    group = SharedMemoryGroup(library, descriptor, self._rank, pids, timeout_s)
                undo.callback(group.close)
                return group

            group = self._agree("group", enter)
            group.barrier()
            undo.pop_all()
        return group

    def _offers(self, own: Offer) -> list[Offer]:
        """Return every rank's offer. Raises NotShared if they come from several machines."""
        said = tell_all(self._store, self._rank, self._world_size, "offers", msgspec.json.encode(own))
        offers = [msgspec.json.decode(words, type=Offer) for words in said]
        num_nodes = len({offer.node for offer in offers})
        if num_nodes > 1:
            raise NotShared(f"the ranks are on {num_nodes} nodes")
        return offers

    def _agree(self, step: str, attempt: Callable[[], T]) -> T:
        """Return what this rank's attempt gave once every rank's succeeded. Raises NotShared if one failed."""
        try:
            outcome, obstacle = attempt(), ""
        except (OSError, KernelsUnavailable) as error:
            outcome, obstacle = None, f"rank {self._rank}: {error}"
        obstacles = tell_all(self._store, self._rank, self._world_size, step, obstacle.encode())
        if outcome is None or any(obstacles):
            raise NotShared("; ".join(filter(None, (words.decode() for words in obstacles))))
        return outcome
