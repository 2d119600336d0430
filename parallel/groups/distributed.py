"""The group over torch.distributed: NCCL between GPUs, gloo between CPUs. No global process group is made."""

from typing import Self

import torch
from torch import Tensor
from torch.distributed import TCPStore


class DistributedGroup:
    """A TPGroup of several processes."""

    @classmethod
    def join(
        cls,
        *,
        rank: int,
        world_size: int,
        host: str,
        store: TCPStore,
        device: torch.device,
        timeout_s: float,
        generation: int,
    ) -> Self:
        """Return the group once every rank joined; blocks up to `timeout_s`. Raises RankDied.

        `host` is this rank's own address, which the other ranks reach it by; `generation` keeps ranks of a former life
        of the group out.
        """
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """This process's index."""
        raise NotImplementedError

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        raise NotImplementedError

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the elementwise sum over ranks, in `x`. Raises RankDied."""
        raise NotImplementedError

    def all_gather(self, x: Tensor) -> Tensor:
        """Return every rank's `x`, [world_size, *x.shape]. Raises RankDied."""
        raise NotImplementedError

    def barrier(self) -> None:
        """Return after every rank arrived. Raises RankDied."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the group; idempotent, never blocks on a dead peer."""
        raise NotImplementedError
