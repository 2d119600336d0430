"""The CUDA tier says why it does not run; asking needs neither GPU nor Triton."""

import subprocess
import sys

import pytest
import torch

from parallel.cuda import support
from parallel.cuda.support import cuda_obstacle
from parallel.rank.tiers import Shape, choose_tier, fastest_tier

GPU = torch.device("cuda:0")


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(support, "has_triton", lambda: True)
    return monkeypatch


def test_a_hopper_has_no_obstacle(hopper):
    assert cuda_obstacle(GPU) == ""
    assert support.fp8_obstacle(GPU) == ""


def test_a_cpu_is_named_as_the_obstacle():
    assert "not cpu" in cuda_obstacle(torch.device("cpu"))


def test_an_old_gpu_is_told_what_is_missing(hopper):
    hopper.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0 (Ampere), not 7.5" in cuda_obstacle(GPU)
    assert "8.9 (Ada), not 7.5" in support.fp8_obstacle(GPU)


@pytest.mark.parametrize("head_dim", [63, 512])
def test_a_head_that_does_not_fit_is_told_its_size(head_dim):
    assert f"not {head_dim}" in support.model_obstacle(head_dim)
    assert support.model_obstacle(256) == ""


def test_a_missing_triton_is_told_how_to_get_it(hopper):
    hopper.setattr(support, "has_triton", lambda: False)
    assert "pip install triton" in cuda_obstacle(GPU)


def test_asking_does_not_import_triton():
    code = "import sys, parallel.cuda.support; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_gpu_that_cannot_run_the_kernels_gets_tier_0_and_the_reason(hopper):
    hopper.setattr(support, "has_triton", lambda: False)
    shape = Shape(torch.bfloat16, torch.bfloat16, head_dim=128, block_size=16)
    assert fastest_tier(GPU) == "torch"
    assert choose_tier(GPU, shape).ops.name == "torch"


def test_the_leader_counts_with_the_cuda_tier_where_it_runs(hopper):
    assert fastest_tier(GPU) == "cuda"
