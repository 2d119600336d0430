"""Ranks of one machine meet in shared memory; a killed or frozen one is noticed, and nothing is left behind."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from core.errors import RankDied
from parallel.cpu.library import KernelLibrary, KernelsUnavailable
from parallel.groups.base import TPGroup
from tests.support.rank_processes import DIED, join_fastest, run_rank_processes

pytestmark = pytest.mark.integration

WAIT_STATES = {"yields": 0.0, "sleeps": 0.05}
"""How long the survivors have waited when the rank is killed."""


def sum_bits(group: TPGroup) -> tuple[str, list[list[int]]]:
    assert group.choice is not None
    generator = torch.Generator().manual_seed(group.rank)
    sums = [group.all_reduce(torch.randn(size, generator=generator)) for size in (7, 50_000)]
    return group.choice.detail, [x.view(torch.int32)[-7:].tolist() for x in sums]


def test_processes_of_one_machine_share_memory_and_every_rank_gets_the_same_bits():
    first, *others = run_rank_processes(3, sum_bits)
    assert first[0].startswith("shared memory")
    assert others == [first, first]


def survive(group: TPGroup, how: str) -> tuple[str, float]:
    """Rank 1 is killed after a while; the others report the error and the seconds from then until it."""
    group.barrier()
    death_s = time.monotonic() + WAIT_STATES[how]
    if group.rank == 1:
        time.sleep(WAIT_STATES[how])
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            group.all_reduce(torch.zeros(8))
    except RankDied as error:
        return (error.message, time.monotonic() - death_s)


@pytest.mark.parametrize("how", WAIT_STATES)
def test_a_killed_rank_is_seen_at_once_and_named(how):
    results = run_rank_processes(3, survive, how)
    assert results[1] == DIED
    for message, seen_s in (results[0], results[2]):
        assert message == "all_reduce failed: rank 1 is gone"
        # Some 10 ms where cores are free; the margin is for a machine that has none.
        assert seen_s < 0.5


def outlive_a_frozen_rank(group: TPGroup) -> tuple[str, float]:
    """Rank 1 stops; rank 0 reports the error and the seconds until it, and wakes rank 1."""
    pids = group.all_gather(torch.tensor([os.getpid()]))
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
        return ("went on", 0.0)
    start_s = time.monotonic()
    try:
        group.barrier()
    except RankDied as error:
        os.kill(int(pids[1]), signal.SIGCONT)
        return (error.message, time.monotonic() - start_s)
    return ("was not missed", 0.0)


def test_a_frozen_rank_is_given_up_after_the_timeout():
    (message, seen_s), other = run_rank_processes(2, outlive_a_frozen_rank, timeout_s=0.5)
    assert message == "barrier timed out: rank 1 did not arrive within 0.5 s"
    assert 0.5 <= seen_s < 2
    assert other == ("went on", 0.0)


def die_while_the_others_sum(group: TPGroup) -> None:
    group.all_reduce(torch.zeros(50_000))
    os.kill(os.getpid(), signal.SIGKILL)


def test_ranks_that_are_all_killed_leave_nothing_behind():
    before = set(Path("/dev/shm").iterdir())
    assert run_rank_processes(2, die_while_the_others_sum) == [DIED, DIED]
    assert set(Path("/dev/shm").iterdir()) == before


def choice_and_sum(group: TPGroup) -> tuple[str, str, float]:
    assert group.choice is not None
    return group.choice.detail, group.choice.reason, group.all_reduce(torch.ones(3)).sum().item()


def join_from_two_nodes(rank: int, world_size: int, port: int, timeout_s: float) -> TPGroup:
    return join_fastest(rank, world_size, port, timeout_s, node=f"node {rank}")


def join_where_one_has_no_kernels(rank: int, world_size: int, port: int, timeout_s: float) -> TPGroup:
    def refuse(level: str | None = None) -> KernelLibrary:
        raise KernelsUnavailable("no C compiler was found")

    if rank == 1:
        KernelLibrary.load = refuse
    return join_fastest(rank, world_size, port, timeout_s)


@pytest.mark.parametrize(
    ("join", "reason"),
    [
        (join_from_two_nodes, "the ranks are on 2 nodes"),
        (join_where_one_has_no_kernels, "rank 1: no C compiler was found"),
    ],
)
def test_ranks_that_cannot_all_share_memory_all_use_gloo_and_say_why(join, reason):
    assert run_rank_processes(2, choice_and_sum, join=join) == [("gloo", reason, 6.0)] * 2
