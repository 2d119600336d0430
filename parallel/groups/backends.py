"""The process groups of torch.distributed, as objects of our own making: no default group, no names in a registry."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store


class Work(Protocol):
    """An operation under way."""

    def wait(self) -> object:
        """Return when it is done (on a GPU: when the current stream will see it done). Raises RuntimeError."""
        ...


class Backend(Protocol):
    """What gloo and NCCL have in common and we use; torch's own stubs leave most of it out. All raise RuntimeError."""

    def rank(self) -> int:
        """This process's index."""
        ...

    def size(self) -> int:
        """Ranks in the group."""
        ...

    def allreduce(self, tensors: Sequence[Tensor]) -> Work:
        """Sum in place."""
        ...

    def _allgather_base(self, output: Tensor, input: Tensor) -> Work: ...

    def send(self, tensors: Sequence[Tensor], dst: int, tag: int) -> Work:
        """Send to one rank; messages of one tag stay in order."""
        ...

    def recv(self, tensors: Sequence[Tensor], src: int, tag: int) -> Work:
        """Receive from one rank."""
        ...

    def abort(self) -> None:
        """End all operations and connections without waiting for anybody."""
        ...


def gloo_backend(store: Store, rank: int, world_size: int, host: str, timeout: timedelta) -> Backend:
    """Return a connected gloo group that listens on `host` only."""
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    # Named, because gloo would otherwise resolve this machine's host name: to nothing, or to another network.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    return cast(Backend, dist.ProcessGroupGloo(store, rank, world_size, options))


def nccl_backend(store: Store, rank: int, world_size: int, device: torch.device, timeout: timedelta) -> Backend:
    """Return a connected NCCL group."""
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    backend = dist.ProcessGroupNCCL(store, rank, world_size, options)
    backend.eager_connect_single_device(device)
    return cast(Backend, backend)
