"""The group over torch.distributed: NCCL between GPUs, gloo between CPUs.

The backend objects are used directly. So there is no global process group, several groups may live in one process, and
a call costs what the backend costs.
"""

from datetime import timedelta
from typing import Self

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from parallel.groups.backends import Backend, gloo_backend, nccl_backend
from parallel.groups.exchange import PeerExchange
from parallel.groups.store import rank_died
from parallel.ops.choice import OpChoice

MAX_EXCHANGE_BYTES = 64 * 1024
"""On gloo, tensors up to this size go rank to rank; from about 100 KiB on gloo's own ring is the faster way."""


class DistributedGroup:
    """A TPGroup of several processes. After RankDied only `close` is of use, after `close` nothing."""

    def __init__(self, backend: Backend, device: torch.device, reason: str = "") -> None:
        """`reason`: why the ranks are not in a faster group."""
        self._reason = reason
        self._rank, self._world_size = backend.rank(), backend.size()
        self._backend = backend
        self._device = device
        self._exchange = PeerExchange(backend) if device.type == "cpu" else None
        self._is_closed = False

    @classmethod
    def join(
        cls,
        *,
        rank: int,
        world_size: int,
        host: str,
        store: Store,
        device: torch.device,
        timeout_s: float,
        generation: int,
        reason: str = "",
    ) -> Self:
        """Return the group once every rank joined; blocks up to `timeout_s`. Raises RankDied.

        `host` is this rank's own address, which the other ranks reach it by; `generation` keeps ranks of a former life
        of the group out. A collective that waits longer than `timeout_s` fails. `reason`: as of the constructor.
        """
        own_store = PrefixStore(f"generation-{generation}", store)
        timeout = timedelta(seconds=timeout_s)
        with rank_died(f"rank {rank} could not form the group of {world_size}"):
            if device.type == "cpu":
                return cls(gloo_backend(own_store, rank, world_size, host, timeout), device, reason)
            return cls(nccl_backend(own_store, rank, world_size, device, timeout), device, reason)

    @property
    def rank(self) -> int:
        """This process's index."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self._world_size

    @property
    def choice(self) -> OpChoice:
        """NCCL or gloo."""
        if self._device.type == "cpu":
            return OpChoice("all_reduce", "torch", "gloo", self._reason)
        return OpChoice("all_reduce", "cuda", "nccl", self._reason)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the elementwise sum over ranks, in `x`. Raises RankDied."""
        with rank_died("all_reduce failed"):
            if self._exchange is not None and x.nbytes <= MAX_EXCHANGE_BYTES:
                return self._exchange.all_reduce(x)
            self._backend.allreduce([x]).wait()
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Return every rank's `x`, [world_size, *x.shape]. Raises RankDied."""
        with rank_died("all_gather failed"):
            if self._exchange is not None and x.nbytes <= MAX_EXCHANGE_BYTES:
                return self._exchange.all_gather(x)
            gathered = x.new_empty((self.world_size, *x.shape))
            self._backend._allgather_base(gathered.view(-1), x.view(-1)).wait()
        return gathered

    def barrier(self) -> None:
        """Return after every rank arrived. Raises RankDied."""
        # Reading the sum waits for the device as well.
        self.all_reduce(torch.zeros(1, device=self._device)).item()

    def close(self) -> None:
        """Leave the group; idempotent, never blocks on a dead peer. The others' collectives fail from now on."""
        if not self._is_closed:
            self._is_closed = True
            self._backend.abort()
            # For gloo the former does nothing; its connections end with the object.
            del self._backend, self._exchange
