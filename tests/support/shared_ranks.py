"""Ranks of a group in shared memory without processes: threads that map one segment, and so need no rendezvous."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from parallel.cpu.library import KernelLibrary
from parallel.groups.shared_memory import SharedMemoryGroup, new_segment

T = TypeVar("T")


def shared_groups(world_size: int, timeout_s: float = 30.0) -> list[SharedMemoryGroup]:
    """Return the groups of all ranks, in rank order, each to be used by a thread of its own."""
    library = KernelLibrary.load()
    pids = [os.getpid()] * world_size
    with new_segment(library, world_size) as segment:
        return [SharedMemoryGroup(library, segment.descriptor, rank, pids, timeout_s) for rank in range(world_size)]


def run_shared_ranks(world_size: int, work: Callable[[SharedMemoryGroup], T]) -> list[T]:
    """Return `work(group)` of every rank, in rank order; an exception of one rank is raised here."""
    groups = shared_groups(world_size)
    with ExitStack() as at_end, ThreadPoolExecutor(world_size) as threads:
        for group in groups:
            at_end.callback(group.close)
        return list(threads.map(work, groups))
