"""The group over gloo between real processes: right sums, and a clear error when a rank dies or hangs."""

import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from core.errors import RankDied
from parallel.groups.base import TPGroup
from parallel.groups.distributed import MAX_EXCHANGE_BYTES
from parallel.groups.store import open_store
from tests.support.rank_processes import DIED, HOST, join_gloo, run_rank_processes

pytestmark = pytest.mark.integration

LARGE = MAX_EXCHANGE_BYTES // 4 + 1
"""float32 values that go through gloo's own collectives."""


def sums_and_gathers(group: TPGroup) -> list[tuple[float, list[float], list[int]]]:
    results = []
    for size in (1, 7, LARGE):
        x = torch.full((size, 2), group.rank + 1.0)
        gathered = group.all_gather(x)
        total = group.all_reduce(x)
        assert (total == total[0, 0]).all()
        results.append((float(total[0, 0]), gathered[:, -1, -1].tolist(), list(gathered.shape)))
    group.barrier()
    return results


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_gets_the_sum_and_all_parts_in_rank_order(world_size):
    total, parts = world_size * (world_size + 1) / 2, [rank + 1.0 for rank in range(world_size)]
    expected = [(total, parts, [world_size, size, 2]) for size in (1, 7, LARGE)]
    assert run_rank_processes(world_size, sums_and_gathers, join=join_gloo) == [expected] * world_size


def sum_bits(group: TPGroup) -> list[list[int]]:
    generator = torch.Generator().manual_seed(group.rank)
    sums = [torch.randn(size, generator=generator).bfloat16() for size in (64, 2 * LARGE)]
    return [group.all_reduce(x).view(torch.int16)[:256].tolist() for x in sums]


def test_every_rank_gets_the_same_bits_because_each_samples_for_itself():
    first, *others = run_rank_processes(3, sum_bits, join=join_gloo)
    assert others == [first, first]


def survive(group: TPGroup, how: str) -> tuple[str, float, float]:
    """Rank 1 breaks; the others report the error, the seconds until it, and the seconds that closing took."""
    group.barrier()
    if group.rank == 1:
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(4)
        return ("hung", 0, 0)
    start = time.monotonic()
    try:
        while True:
            group.all_reduce(torch.zeros(LARGE if how == "dies in a large sum" else 8))
    except RankDied as error:
        seen = time.monotonic()
        group.close()
        group.close()
        return (error.message, seen - start, time.monotonic() - seen)


def test_a_killed_rank_is_seen_at_once_and_closing_does_not_wait_for_it():
    results = run_rank_processes(3, survive, "dies", join=join_gloo)
    assert results[1] == DIED
    for message, seen_s, closed_s in (results[0], results[2]):
        assert message.startswith("all_reduce failed: ")
        assert seen_s < 1
        assert closed_s < 1


def test_closing_ends_the_connections_so_that_the_others_notice_at_once():
    store = open_store(HOST, 0, 5.0)
    with ThreadPoolExecutor(2) as threads:
        leaver, stayer = threads.map(lambda rank: join_gloo(rank, 2, store.port, timeout_s=5.0), range(2))
    leaver.close()
    start = time.monotonic()
    with pytest.raises(RankDied):
        stayer.all_reduce(torch.zeros(8))
    stayer.close()
    assert time.monotonic() - start < 1


def test_a_rank_that_hangs_is_given_up_after_the_timeout():
    message, seen_s, closed_s = run_rank_processes(2, survive, "hangs", timeout_s=1.0, join=join_gloo)[0]
    assert re.search("[Tt]imed out", message)
    assert 0.9 < seen_s < 3
    assert closed_s < 1


def test_ranks_of_different_generations_do_not_meet():
    store = open_store(HOST, 0, 5.0)
    with ThreadPoolExecutor(2) as threads:
        joins = [threads.submit(join_gloo, rank, 2, store.port, 1.0, generation=rank) for rank in range(2)]
    for rank, join in enumerate(joins):
        with pytest.raises(RankDied, match=f"rank {rank} could not form the group of 2"):
            join.result()


def test_a_rendezvous_where_nobody_listens_is_an_error_naming_the_address():
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RankDied, match=f"no rendezvous at {HOST}:{port} within 0.5 s"):
        open_store(HOST, port, 0.5)


def test_the_store_listens_on_the_given_address_only():
    store = open_store(HOST, 0, 5.0)
    listening = [
        connection.laddr.ip
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == store.port
    ]
    assert listening == [HOST]
