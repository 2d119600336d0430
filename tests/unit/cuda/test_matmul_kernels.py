"""Products with quantised weights against products with the dequantised weight."""

import pytest
import torch

from parallel.cuda.linear import FP8_MAX, CublasMatmul, Fp8Matmul, quantise_rows, scaled_matmul
from parallel.cuda.ops import CudaOps
from parallel.cuda.quantised import MAX_KERNEL_TOKENS, QuantisedMatmul, dequantise, multiply, pack
from parallel.formats.quantise import quantise_fp8, quantise_int8
from parallel.formats.quantised import QuantFormat, QuantisedMatrix
from tests.support.kernel_device import DEVICE


def a_weight(quant_format: QuantFormat, num_outputs: int, num_inputs: int) -> QuantisedMatrix:
    generator = torch.Generator().manual_seed(0)
    weight_RI = torch.randn(num_outputs, num_inputs, generator=generator)
    if quant_format is QuantFormat.INT8:
        weight = quantise_int8(weight_RI)
        assert weight is not None
    elif quant_format is QuantFormat.FP8:
        weight = quantise_fp8(weight_RI)
    else:
        codes = torch.randint(0, 16, (num_outputs, num_inputs), generator=generator, dtype=torch.uint8)
        scales, minimums = torch.randn(2, num_outputs, num_inputs // 32, generator=generator).half()
        weight = QuantisedMatrix(quant_format, codes, scales, minimums)
    return weight.to(DEVICE)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(DEVICE)


GROUPED = [QuantFormat.INT8, QuantFormat.INT4]


@pytest.mark.parametrize("quant_format", GROUPED)
def test_packing_loses_nothing(quant_format):
    weight = a_weight(quant_format, 130, 96)
    assert torch.equal(dequantise(pack(weight), torch.float32), weight.dequantised())


@pytest.mark.parametrize("quant_format", GROUPED)
@pytest.mark.parametrize("num_tokens", [1, 17])
@pytest.mark.parametrize("num_parts", [1, 4])
def test_the_kernel_multiplies_by_the_dequantised_weight(quant_format, num_tokens, num_parts):
    weight, x_TI, bias_R = a_weight(quant_format, 70, 160), randn(num_tokens, 160), randn(70)
    expected_TR = torch.nn.functional.linear(x_TI, weight.dequantised(), bias_R)
    actual_TR = multiply(x_TI, pack(weight), bias_R, num_parts)
    torch.testing.assert_close(actual_TR, expected_TR, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("quant_format", GROUPED)
def test_activations_of_bfloat16_lose_no_more_than_their_own_rounding(quant_format):
    weight, x_TI = a_weight(quant_format, 64, 64), randn(3, 64, dtype=torch.bfloat16)
    expected_TR = (x_TI.float() @ weight.dequantised().T).bfloat16()
    torch.testing.assert_close(multiply(x_TI, pack(weight), None, 1), expected_TR, rtol=8e-3, atol=8e-3)


def test_many_tokens_and_few_give_the_same_product():
    weight = a_weight(QuantFormat.INT4, 64, 64)
    matmul = QuantisedMatmul(pack(weight), randn(64), torch.float32, num_multiprocessors=4)
    x_TI = randn(MAX_KERNEL_TOKENS + 1, 64)
    torch.testing.assert_close(matmul(x_TI)[:5], matmul(x_TI[:5]), rtol=1e-4, atol=1e-4)


def test_rows_in_fp8_have_their_own_scale_and_lose_at_most_a_sixteenth():
    x_TI = randn(5, 96) * torch.tensor([[1e-6], [1.0], [1e4], [3.0], [0.0]], device=DEVICE)
    x_fp8_TI, scale_T1 = quantise_rows(x_TI)
    assert (x_fp8_TI.float().abs().amax(1)[:4] == FP8_MAX).all()
    error_TI = (x_fp8_TI.float() * scale_T1 - x_TI).abs()
    assert (error_TI <= x_TI.abs() / 16 + scale_T1 * 2**-9).all()


def test_a_token_that_is_not_finite_spoils_its_own_row_alone():
    x_TI = randn(3, 32)
    x_TI[1, 5] = torch.nan
    matmul = CudaOps(torch.bfloat16, 1, scaled_matmul()).matmul(a_weight(QuantFormat.FP8, 16, 32), None)
    y_TR = matmul(x_TI.bfloat16())
    assert y_TR[[0, 2]].isfinite().all()
    assert not y_TR[1].isfinite().any()


def test_fp8_products_are_within_the_formats_error():
    weight, x_TI = a_weight(QuantFormat.FP8, 64, 256), randn(9, 256, dtype=torch.bfloat16)
    matmul = CudaOps(torch.bfloat16, 1, scaled_matmul()).matmul(weight, None)
    assert isinstance(matmul, Fp8Matmul)
    expected_TR = x_TI.float() @ weight.dequantised().T
    error = (matmul(x_TI).float() - expected_TR).norm() / expected_TR.norm()
    assert error < 0.04


def test_fp8_weights_without_a_kernel_are_dequantised_and_say_so():
    weight = a_weight(QuantFormat.FP8, 24, 64)
    for ops in (CudaOps(torch.float32, 1), CudaOps(torch.float32, 1, scaled_matmul())):
        matmul = ops.matmul(weight, None)
        assert isinstance(matmul, CublasMatmul)
        assert "fp8 dequantised" in matmul.name
        torch.testing.assert_close(matmul(randn(2, 64)), randn(2, 64) @ weight.dequantised().T)


def test_a_tied_quantised_head_is_the_embedding_too_and_counts_once():
    weight, ops = a_weight(QuantFormat.INT8, 40, 64), CudaOps(torch.float32, 1)
    head = ops.matmul(weight, None)
    table = ops.embedding(weight, head)
    assert table.num_bytes == 0
    assert head.num_bytes == weight.format.num_bytes(40, 64)
    assert torch.equal(table(torch.tensor([3], device=DEVICE))[0], weight.dequantised()[3])
