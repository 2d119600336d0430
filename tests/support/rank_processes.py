"""Real ranks: one process each, joined on the loopback interface as a rank joins, or over gloo."""

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from parallel.groups.base import TPGroup
from parallel.groups.distributed import DistributedGroup
from parallel.groups.joining import join_group
from parallel.groups.solo import SoloGroup
from parallel.groups.store import open_store

HOST = "127.0.0.1"
CPU = torch.device("cpu")
TIMEOUT_S = 30.0

Join = Callable[[int, int, int, float], TPGroup]
"""Returns the group from (rank, world_size, port of the store, timeout_s)."""

DIED = "died"
"""What a rank that ended without a result is said to have returned."""


def join_fastest(rank: int, world_size: int, port: int, timeout_s: float, node: str = "this machine") -> TPGroup:
    """Return this rank's group as `parallel.rank` would: in shared memory, since all are on one node."""
    if world_size == 1:
        return SoloGroup()
    return join_group(
        rank=rank,
        world_size=world_size,
        host=HOST,
        node=node,
        store=open_store(HOST, port, TIMEOUT_S),
        device=CPU,
        timeout_s=timeout_s,
        generation=1,
    )


def join_gloo(rank: int, world_size: int, port: int, timeout_s: float, generation: int = 1) -> TPGroup:
    """Return this rank's group over sockets."""
    return DistributedGroup.join(
        rank=rank,
        world_size=world_size,
        host=HOST,
        store=open_store(HOST, port, TIMEOUT_S),
        device=CPU,
        timeout_s=timeout_s,
        generation=generation,
    )


def run_rank_processes(
    world_size: int,
    work: Callable[..., Any],
    *args: object,
    timeout_s: float = TIMEOUT_S,
    join: Join = join_fastest,
) -> list[Any]:
    """Return `work(group, *args)` of every rank, in rank order; results must be plain data. Kills what does not end.

    `work` and `join` are found by name in their modules, which the ranks import. `timeout_s` is the group's.
    """
    store = open_store(HOST, 0, TIMEOUT_S)
    # Forked from one server that has imported torch once, instead of once a rank.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.rank_processes"])
    pipes = [context.Pipe() for _ in range(world_size)]
    ranks = [
        context.Process(target=_run_rank, args=(rank, world_size, store.port, timeout_s, join, answer, work, args))
        for rank, (_, answer) in enumerate(pipes)
    ]
    for process in ranks:
        process.start()
    for _, answer in pipes:
        answer.close()
    try:
        return [_result(results) for results, _ in pipes]
    finally:
        for results, _ in pipes:
            results.close()
        for process in ranks:
            process.join(TIMEOUT_S)
            process.kill()


def _result(results: Connection) -> Any:
    assert results.poll(3 * TIMEOUT_S), "a rank gave no result in time"
    try:
        return results.recv()
    except EOFError:
        return DIED


def _run_rank(
    rank: int,
    world_size: int,
    port: int,
    timeout_s: float,
    join: Join,
    answer: Connection,
    work: Callable[..., Any],
    args: tuple,
) -> None:
    torch.set_num_threads(1)
    group = join(rank, world_size, port, timeout_s)
    answer.send(work(group, *args))
    # A rank that left while another still computes would look dead to it: the parent hangs up when it has all answers.
    with contextlib.suppress(EOFError):
        answer.recv()
    group.close()
