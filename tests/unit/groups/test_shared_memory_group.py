"""Sums and gathers through shared memory: the right bits on every rank, however often and in whatever sizes."""

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from core.errors import RankDied
from parallel.cpu.library import KernelLibrary
from parallel.groups.shared_memory import SegmentAddress, new_segment, open_segment
from tests.support.shared_ranks import run_shared_ranks, shared_groups

SLOT_FLOATS = 128 * 1024 // 4
"""What fits one slot of all_reduce.c."""
SIZES = (1, 15, 63, 64, 577, 4095, 4096, 4097, SLOT_FLOATS, SLOT_FLOATS + 1, 2 * SLOT_FLOATS + 17)
"""Around a vector, around where more than two ranks divide a sum, around one and two slots."""


def contribution(rank: int, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1000 * size + rank))


def added_in_rank_order(world_size: int, size: int) -> torch.Tensor:
    total = contribution(0, size)
    for rank in range(1, world_size):
        total = total + contribution(rank, size)
    return total


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_every_rank_has_the_bits_of_adding_in_rank_order(world_size):
    sums = run_shared_ranks(
        world_size, lambda group: [group.all_reduce(contribution(group.rank, size)) for size in SIZES]
    )
    expected = [added_in_rank_order(world_size, size) for size in SIZES]
    for rank_sums in sums:
        for total, right in zip(rank_sums, expected, strict=True):
            assert torch.equal(total, right)


@pytest.mark.parametrize("world_size", [2, 5])
def test_gathered_parts_are_in_rank_order_whatever_their_type_and_size(world_size):
    def gather(group):
        parts = (torch.full((3, 5), group.rank, dtype=torch.int64), contribution(group.rank, 2 * SLOT_FLOATS + 17))
        return [group.all_gather(x) for x in (*parts, torch.tensor([group.rank % 2 == 0]))]

    for numbers, values, flags in run_shared_ranks(world_size, gather):
        assert numbers.shape == (world_size, 3, 5)
        assert numbers[:, 2, 4].tolist() == list(range(world_size))
        assert all(torch.equal(values[rank], contribution(rank, values.shape[1])) for rank in range(world_size))
        assert flags[:, 0].tolist() == [rank % 2 == 0 for rank in range(world_size)]


def test_narrow_floats_are_added_in_float32_and_rounded_once():
    # 256 + 1 + 1 is 258; rounded to bfloat16 after each addition it stays 256.
    def total(group):
        return group.all_reduce(torch.full((10,), 256.0 if group.rank == 0 else 1.0).bfloat16())

    assert [x.tolist() for x in run_shared_ranks(3, total)] == [[258.0] * 10] * 3


def test_integers_and_doubles_are_summed_exactly():
    def totals(group):
        whole = group.all_reduce(torch.tensor([2**53 + group.rank]))
        return whole.item(), group.all_reduce(torch.tensor([1e-17 + group.rank], dtype=torch.float64)).item()

    assert run_shared_ranks(3, totals) == [(3 * 2**53 + 3, 3.0)] * 3


def test_a_thousand_collectives_of_all_kinds_do_not_mix():
    # The other slot's turn, divided sums, barriers and pieces follow each other in every order.
    def mixed(group):
        generator = torch.Generator().manual_seed(0)
        for _ in range(1000):
            kind, size = torch.randint(0, 12, (2,), generator=generator).tolist()
            size = 40_000 if kind == 0 else 5_000 if kind == 1 else size
            x = torch.full((size,), group.rank + 1.0)
            if kind < 8:
                assert (group.all_reduce(x) == 6).all()
            elif kind < 11:
                assert (group.all_gather(x) == torch.tensor([[1.0], [2.0], [3.0]])).all()
            else:
                group.barrier()

    run_shared_ranks(3, mixed)


def test_the_choice_names_shared_memory_and_no_reason_for_less():
    (choice, _) = run_shared_ranks(2, lambda group: group.choice)
    assert (choice.op, choice.tier, choice.reason) == ("all_reduce", "cpu", "")
    assert choice.detail.startswith("shared memory")


def test_a_rank_that_left_is_named_to_those_who_wait_for_it():
    staying, leaving = shared_groups(2)
    leaving.close()
    leaving.close()
    with pytest.raises(RankDied, match="all_reduce failed: rank 1 is gone"):
        staying.all_reduce(torch.zeros(8))
    staying.close()


def test_a_rank_that_leaves_after_its_last_collective_spoils_it_for_nobody():
    groups = shared_groups(3)

    def last(group):
        total = group.all_reduce(torch.ones(1)).item()
        group.close()
        return total

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(last, groups)) == [3.0] * 3


def test_a_rank_that_does_not_come_is_named_after_the_timeout():
    waiting, absent = shared_groups(2, timeout_s=0.05)
    with pytest.raises(RankDied, match=r"barrier timed out: rank 1 did not arrive within 0\.05 s"):
        waiting.barrier()
    waiting.close()
    absent.close()


def test_a_segment_cannot_be_cut_short_under_those_who_read_it():
    with new_segment(KernelLibrary.load(), 2) as address, open_segment(address) as descriptor:
        with pytest.raises(OSError) as error:
            os.ftruncate(descriptor, 0)
        assert error.value.errno == errno.EPERM
        assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL


def test_another_process_with_the_same_number_is_not_taken_for_the_one_that_was_meant():
    with new_segment(KernelLibrary.load(), 2) as address:
        stranger = SegmentAddress(address.pid, address.descriptor, "eagleray-group-of-others")
        with pytest.raises(FileNotFoundError, match="is another process's"), open_segment(stranger):
            pass
