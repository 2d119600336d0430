"""A TP group without processes: every rank is a thread, a collective is a barrier and a shared list."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
TIMEOUT_S = 30.0


class _Meeting:
    """Where the ranks of one group lay down their tensors."""

    def __init__(self, world_size: int) -> None:
        self.tensors: list[Tensor | None] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=TIMEOUT_S)


class FakeGroup:
    """A TPGroup; use `run_ranks` to have all ranks of it."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self._rank = rank
        self._meeting = meeting
        self.num_collectives = 0

    @property
    def rank(self) -> int:
        """This thread's index."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Threads in the group."""
        return len(self._meeting.tensors)

    @property
    def choice(self) -> None:
        """Nothing worth telling."""
        return None

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum; overwrites `x`, as the real group does."""
        return x.copy_(self.all_gather(x).sum(dim=0))

    def all_gather(self, x: Tensor) -> Tensor:
        """Return all tensors stacked. Refuses what the real group may not be given."""
        assert x.is_contiguous(), "collectives need contiguous tensors"
        self.num_collectives += 1
        self._meeting.tensors[self._rank] = x
        self._meeting.barrier.wait()
        gathered = torch.stack([tensor for tensor in self._meeting.tensors if tensor is not None])
        # Nobody may overwrite its tensor before everybody has read it.
        self._meeting.barrier.wait()
        return gathered

    def barrier(self) -> None:
        """Wait for all threads."""
        self._meeting.barrier.wait()

    def close(self) -> None:
        """Release whoever waits for this rank."""
        self._meeting.barrier.abort()


def run_ranks(world_size: int, work: Callable[[FakeGroup], T]) -> list[T]:
    """Return `work(group)` of every rank, in rank order; an exception of one rank is raised here."""
    meeting = _Meeting(world_size)

    def run(rank: int) -> T:
        group = FakeGroup(rank, meeting)
        try:
            with torch.inference_mode():
                return work(group)
        except BaseException:
            group.close()
            raise

    with ThreadPoolExecutor(world_size) as threads:
        futures = [threads.submit(run, rank) for rank in range(world_size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    # A rank that broke makes the others fail at the barrier; its own error says more.
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
