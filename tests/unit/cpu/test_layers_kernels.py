"""Norms and the activation in C against float64, at every level this CPU runs."""

from itertools import product

import pytest
import torch
from torch import Tensor

from parallel.cpu.library import KernelLibrary
from parallel.cpu.threads import ThreadPool
from tests.support.kernel_libraries import LEVELS, kernel_library

EPS = 1e-5
SIZES = (1, 16, 31, 576, 1000)


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest) -> KernelLibrary:
    return kernel_library(request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rms_norm(library: KernelLibrary, x_TD: Tensor, weight_D: Tensor, threads: int | None = None) -> Tensor:
    y_TD = torch.empty_like(x_TD)
    call = library.calls.eg_rms_norm
    call(threads, x_TD.data_ptr(), weight_D.data_ptr(), EPS, *x_TD.shape, y_TD.data_ptr())
    return y_TD


def add_rms_norm(library: KernelLibrary, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor) -> Tensor:
    y_TD = torch.empty_like(x_TD)
    addresses = (x_TD.data_ptr(), residual_TD.data_ptr(), weight_D.data_ptr())
    library.calls.eg_add_rms_norm(None, *addresses, EPS, *x_TD.shape, y_TD.data_ptr())
    return y_TD


def silu_mul(library: KernelLibrary, gate_up_TF: Tensor, threads: int | None = None) -> Tensor:
    num_tokens, width = gate_up_TF.shape
    y_TF = torch.empty(num_tokens, width // 2)
    library.calls.eg_silu_mul(threads, gate_up_TF.data_ptr(), num_tokens, width // 2, y_TF.data_ptr())
    return y_TF


def exact_norm(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    x_TD = x_TD.double()
    return (x_TD * torch.rsqrt(x_TD.square().mean(1, keepdim=True) + EPS) * weight_D).float()


@pytest.mark.parametrize("size", SIZES)
def test_norm_is_that_of_float64(library: KernelLibrary, size: int):
    x_TD, weight_D = random(5, size), random(size, seed=1)
    torch.testing.assert_close(rms_norm(library, x_TD, weight_D), exact_norm(x_TD, weight_D), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_norm_adds_to_the_residual_first(library: KernelLibrary, size: int):
    x_TD, residual_TD, weight_D = random(3, size), random(3, size, seed=1), random(size, seed=2)
    sum_TD = x_TD + residual_TD
    y_TD = add_rms_norm(library, x_TD, residual_TD, weight_D)
    assert torch.equal(residual_TD, sum_TD)
    assert torch.equal(y_TD, rms_norm(library, sum_TD, weight_D))


def test_norm_in_place_is_the_norm(library: KernelLibrary):
    x_TD, weight_D = random(4, 100), random(100, seed=1)
    expected = rms_norm(library, x_TD, weight_D)
    library.calls.eg_rms_norm(None, x_TD.data_ptr(), weight_D.data_ptr(), EPS, 4, 100, x_TD.data_ptr())
    assert torch.equal(x_TD, expected)


@pytest.mark.parametrize("size", SIZES)
def test_activation_is_that_of_float64(library: KernelLibrary, size: int):
    gate_up_TF = random(3, 2 * size) * 20
    gate_TF, up_TF = gate_up_TF.double().chunk(2, dim=1)
    exact_TF = (torch.nn.functional.silu(gate_TF) * up_TF).float()
    torch.testing.assert_close(silu_mul(library, gate_up_TF), exact_TF, rtol=2e-6, atol=1e-7)


def test_activation_of_huge_inputs_is_their_limit(library: KernelLibrary):
    gates = torch.tensor([[-1e30, -100.0, -88.0, 88.0, 100.0, 1e30, 0.0, float("nan")]])
    y_TF = silu_mul(library, torch.cat((gates, torch.ones_like(gates)), dim=1))[0]
    assert y_TF[:3].abs().max() < 1e-35 and torch.equal(y_TF[3:7], gates[0, 3:7]) and y_TF[7].isnan()


def test_a_row_alone_and_among_others_on_more_threads_has_the_same_bits(library: KernelLibrary):
    threads = ThreadPool(library, 3)
    x_TD, weight_D, gate_up_TF = random(200, 576), random(576, seed=1), random(200, 2 * 576, seed=2)
    normed_TD = rms_norm(library, x_TD, weight_D, threads.pointer)
    activated_TF = silu_mul(library, gate_up_TF, threads.pointer)
    threads.close()
    for row in (0, 99, 199):
        assert torch.equal(normed_TD[row], rms_norm(library, x_TD[row : row + 1], weight_D)[0])
        assert torch.equal(activated_TF[row], silu_mul(library, gate_up_TF[row : row + 1])[0])


def test_levels_with_fused_arithmetic_agree_bit_for_bit():
    x_TD, weight_D, gate_up_TF = random(2, 300), random(300, seed=1), random(2, 600, seed=2) * 30
    fused = [level for level in LEVELS if level != "portable"]
    for one, other in product(fused[:1], fused[1:]):
        norms = [rms_norm(kernel_library(level), x_TD, weight_D) for level in (one, other)]
        activations = [silu_mul(kernel_library(level), gate_up_TF) for level in (one, other)]
        assert torch.equal(*norms) and torch.equal(*activations)
