"""What a rank process is given to see."""

import pytest

from core.errors import PlacementImpossible
from engine.rank_pools.local_launcher import environment_of
from parallel.rank.messages import RankSpec


def spec(seat: int, device: str) -> RankSpec:
    return RankSpec(
        seat=seat,
        world_size=2,
        leader_host="127.0.0.1",
        leader_port=1,
        secret=b"",
        device=device,
        num_threads=1,
    )


@pytest.mark.parametrize(("visible", "expected"), [(None, "1"), ("4, 6", "6"), ("GPU-a,GPU-b,GPU-c", "GPU-b")])
def test_a_rank_sees_its_own_gpu_of_those_the_leader_sees(visible: str | None, expected: str):
    assert environment_of(spec(1, "cuda"), visible) == {"CUDA_VISIBLE_DEVICES": expected}


@pytest.mark.parametrize("visible", ["", "7"])
def test_fewer_gpus_than_ranks_is_an_error_that_names_both(visible: str):
    with pytest.raises(PlacementImpossible, match="GPUs to 2 ranks"):
        environment_of(spec(1, "cuda"), visible)


def test_a_rank_on_the_cpu_keeps_the_leaders_environment():
    assert environment_of(spec(0, "cpu"), "3") == {}
