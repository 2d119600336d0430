"""Which sums go through symmetric memory; the kernels themselves need several GPUs."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore

from parallel.groups.symmetric import (
    SymmetricGroup,
    SymmetricUnavailable,
    TorchSymmetricSums,
    limits_of,
    symmetric_obstacle,
)
from tests.support.fake_tp_group import FakeGroup, run_ranks


class RecordedSums:
    """Stands in for the GPUs' memory."""

    def __init__(self):
        self.calls: list[str] = []

    def one_shot(self, x: Tensor) -> Tensor:
        self.calls.append("one shot")
        return 2 * x

    def two_shot(self, x: Tensor) -> Tensor:
        self.calls.append("two shots")
        return 2 * x


class QuietGroup:
    """The group underneath."""

    rank, choice = 0, None

    def __init__(self, world_size: int):
        self.world_size = world_size
        self.num_sums = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        self.num_sums += 1
        return 2 * x


def way_of(x: Tensor, world_size: int) -> str:
    group, sums = QuietGroup(world_size), RecordedSums()
    SymmetricGroup(group, sums).all_reduce(x)
    return (sums.calls + ["nccl"] * group.num_sums)[0]


def of_bytes(num_bytes: int) -> Tensor:
    return torch.zeros(num_bytes // 2, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("world_size", "num_bytes", "way"),
    [
        (2, 8 * 2**20, "one shot"),
        (2, 8 * 2**20 + 64, "nccl"),
        (3, 576 * 1024, "two shots"),
        (4, 512 * 1024, "one shot"),
        (4, 512 * 1024 + 64, "two shots"),
        (8, 256 * 1024 + 128, "two shots"),
        (8, 9 * 2**20, "nccl"),
    ],
)
def test_the_size_and_the_ranks_decide_the_way(world_size, num_bytes, way):
    assert way_of(of_bytes(num_bytes), world_size) == way


def test_what_the_kernels_cannot_add_goes_through_nccl():
    assert way_of(torch.zeros(64, dtype=torch.float16), 2) == "nccl"
    assert way_of(torch.zeros(9, dtype=torch.bfloat16), 2) == "nccl"
    assert way_of(torch.zeros(0, dtype=torch.bfloat16), 2) == "nccl"


def test_other_collectives_pass_through():
    def gathered(group: FakeGroup) -> list[int]:
        return SymmetricGroup(group, RecordedSums()).all_gather(torch.tensor([group.rank])).flatten().tolist()

    assert run_ranks(2, gathered) == [[0, 1], [0, 1]]


def test_the_choice_names_the_sizes():
    choice = SymmetricGroup(QuietGroup(4), RecordedSums()).choice
    assert "one shot to 512 KiB, two to 8192 KiB" in choice.detail


def test_ranks_that_cannot_share_memory_are_told_why():
    assert "GPUs" in symmetric_obstacle(2, torch.device("cpu"))
    assert "not 9" in symmetric_obstacle(9, torch.device("cuda:0"))
    assert limits_of(9) == (0, 0)
    assert symmetric_obstacle(8, torch.device("cuda:0")) == ""


def obstacles_of(nodes: list[str], generation: int) -> list[str]:
    """Return what every rank is told when they try to share memory."""
    store, gpu = HashStore(), torch.device("cuda:0")

    def join(rank: int) -> str:
        with pytest.raises(SymmetricUnavailable) as told:
            TorchSymmetricSums.join(store, rank, len(nodes), nodes[rank], gpu, generation)
        return str(told.value)

    with ThreadPoolExecutor(len(nodes)) as ranks:
        return list(ranks.map(join, range(len(nodes))))


def test_ranks_on_several_machines_all_hear_that_they_cannot():
    assert obstacles_of(["one", "other"], generation=10**6) == ["the ranks are on 2 nodes"] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="threads of one process are no ranks")
def test_one_rank_that_cannot_allocate_keeps_all_from_mapping():
    first, second = obstacles_of(["one", "one"], generation=10**6 + 1)
    assert first == second
    assert "rank 0: " in first
    assert "rank 1: " in first
