"""Sums between the GPUs of one machine through memory that every GPU maps, where NCCL's latency would be the time.

Two kernels of torch's symmetric memory: in one shot every rank reads all others' tensors and adds them up itself, which
takes one exchange; in two shots every rank adds up its share and hands it round, which moves less. Large tensors go
through NCCL. Both kernels add in rank order, so that every rank gets the same bits, and both may be captured in a CUDA
graph. Not measured yet: nothing of this has run on more than one GPU.
"""

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, _SymmetricMemory

from parallel.groups.base import TPGroup
from parallel.groups.store import rank_died, tell_all
from parallel.ops.choice import OpChoice

_KIB, _MIB = 2**10, 2**20


class Limits(NamedTuple):
    """Up to how many bytes a tensor is summed how; above, NCCL does it."""

    one_shot: int
    two_shot: int


_LIMITS = {2: Limits(8 * _MIB, 8 * _MIB), 4: Limits(512 * _KIB, 8 * _MIB), 8: Limits(256 * _KIB, 8 * _MIB)}
"""By number of ranks, rounded up: vLLM's for its own kernels of the same two kinds (`custom_all_reduce.cuh`). Of two
ranks both kinds move the same."""
_ALIGNMENT = 16
_DTYPES = (torch.bfloat16, torch.float32)
"""What torch's kernels add."""


class SymmetricSums(Protocol):
    """Sums over the ranks, without a host in between."""

    def one_shot(self, x: Tensor) -> Tensor:
        """Return the sum in memory of its own."""
        ...

    def two_shot(self, x: Tensor) -> Tensor:
        """Return the sum; may overwrite `x`."""
        ...


class SymmetricUnavailable(Exception):
    """The GPUs cannot map each other's memory; the message says why. Raised by every rank or by none."""


class SymmetricGroup:
    """A TPGroup that sums small tensors itself and leaves the rest to another."""

    def __init__(self, group: TPGroup, sums: SymmetricSums) -> None:
        self._group = group
        self._sums = sums
        self._limits = limits_of(group.world_size)

    @property
    def rank(self) -> int:
        """This process's index."""
        return self._group.rank

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self._group.world_size

    @property
    def choice(self) -> OpChoice:
        """Which way tensors of which size go."""
        one_shot, two_shot = self._limits
        detail = f"symmetric memory, one shot to {one_shot // _KIB} KiB, two to {two_shot // _KIB} KiB, then nccl"
        return OpChoice("all_reduce", "cuda", detail)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the elementwise sum over ranks; may overwrite `x`. Raises RankDied."""
        is_whole = x.nbytes % (_ALIGNMENT * self.world_size) == 0
        if x.dtype not in _DTYPES or not is_whole or x.nbytes > self._limits.two_shot or not x.nbytes:
            return self._group.all_reduce(x)
        with rank_died("all_reduce failed"):
            return self._sums.one_shot(x) if x.nbytes <= self._limits.one_shot else self._sums.two_shot(x)

    def all_gather(self, x: Tensor) -> Tensor:
        """Return every rank's `x`, [world_size, *x.shape]. Raises RankDied."""
        return self._group.all_gather(x)

    def barrier(self) -> None:
        """Return after every rank arrived. Raises RankDied."""
        self._group.barrier()

    def close(self) -> None:
        """Leave the group; idempotent, never blocks on a dead peer."""
        self._group.close()


class TorchSymmetricSums:
    """Sums through one buffer that every rank's GPU maps. Ranks call in the same order, on one stream each."""

    def __init__(self, name: str, buffer: Tensor) -> None:
        """`buffer` is uint8 and mapped by all ranks under `name`."""
        self._name = name
        self._buffer = buffer

    @classmethod
    def join(cls, store: Store, rank: int, world_size: int, node: str, device: torch.device, generation: int) -> Self:
        """Return the sums once every rank's GPU maps the buffers of all; blocks. Raises SymmetricUnavailable, RankDied.

        `node` is the same for ranks on one machine. `generation` differs between the groups that a process joins.
        """
        if obstacle := symmetric_obstacle(world_size, device):
            raise SymmetricUnavailable(obstacle)
        name = f"eagleray-{generation}"
        own_store = PrefixStore(f"generation-{generation}/symmetric", store)
        num_nodes = len(set(tell_all(own_store, rank, world_size, "node", node.encode())))
        if num_nodes > 1:
            raise SymmetricUnavailable(f"the ranks are on {num_nodes} nodes")
        buffer, obstacle = None, ""
        try:
            _SymmetricMemory.set_group_info(name, rank, world_size, PrefixStore("memory", own_store))
            num_bytes = limits_of(world_size).two_shot
            buffer = _SymmetricMemory.empty_strided_p2p((num_bytes,), (1,), torch.uint8, device, name)
        except RuntimeError as error:
            obstacle = _first_line(error)
        # Mapping waits for every rank, so that none may begin when one has failed.
        _agree(own_store, rank, world_size, "allocated", obstacle)
        assert buffer is not None
        try:
            _SymmetricMemory.rendezvous(buffer, name)
        except RuntimeError as error:
            obstacle = _first_line(error)
        _agree(own_store, rank, world_size, "mapped", obstacle)
        return cls(name, buffer)

    def one_shot(self, x: Tensor) -> Tensor:
        """Return the sum in memory of its own; one launch."""
        return torch.ops.symm_mem.one_shot_all_reduce_copy.default(self._part_like(x), x, "sum", self._name)

    def two_shot(self, x: Tensor) -> Tensor:
        """Return the sum in `x`; three launches."""
        part = self._part_like(x)
        part.copy_(x)
        torch.ops.symm_mem.two_shot_all_reduce_.default(part, "sum", self._name)
        return x.copy_(part)

    def _part_like(self, x: Tensor) -> Tensor:
        return self._buffer[: x.nbytes].view(x.dtype).view(x.shape)


def limits_of(world_size: int) -> Limits:
    """Return the sizes for so many ranks; more than eight share no machine."""
    return next((limits for most, limits in _LIMITS.items() if world_size <= most), Limits(0, 0))


def symmetric_obstacle(world_size: int, device: torch.device) -> str:
    """Return why ranks need not even try; empty if they should."""
    if device.type != "cuda":
        return "symmetric memory is for GPUs"
    if not limits_of(world_size).two_shot:
        return f"symmetric memory is for up to 8 ranks, not {world_size}"
    if not hasattr(torch.ops.symm_mem, "one_shot_all_reduce_copy"):
        return "this torch has no one_shot_all_reduce_copy"
    return ""


def _agree(store: Store, rank: int, world_size: int, step: str, obstacle: str) -> None:
    """Return if no rank met an obstacle. Raises SymmetricUnavailable on all of them otherwise."""
    said = [words.decode() for words in tell_all(store, rank, world_size, step, obstacle.encode())]
    if any(said):
        raise SymmetricUnavailable("; ".join(f"rank {index}: {words}" for index, words in enumerate(said) if words))


def _first_line(error: RuntimeError) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
