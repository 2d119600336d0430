"""Norm, activation, rotation, cache writes and embedding by Triton kernels against tier 0."""

import pytest
import torch

from parallel.attention.base import AttentionBatch
from parallel.cuda.embedding import PlainEmbedding, QuantisedEmbedding
from parallel.cuda.ops import CudaOps
from parallel.cuda.quantised import pack
from parallel.formats.quantise import quantise_int8
from parallel.ops.base import HeadNorms, HeadShape
from parallel.ops.torch_ops import TorchEmbedding, TorchOps
from tests.support.cuda_steps import TOLERANCES, empty_kv
from tests.support.kernel_device import DEVICE

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "width"), list(zip(DTYPES, [100, 64, 576], strict=True)))
def test_adding_and_norming_leaves_the_same_residual_and_norm(dtype, width):
    x_TD, weight_D = randn(3, width, dtype=dtype), randn(width, dtype=dtype, seed=1)
    residuals = [randn(3, width, dtype=dtype, seed=2) for _ in range(2)]
    expected = TorchOps(dtype).add_rms_norm(x_TD, residuals[0], weight_D, 1e-5)
    assert_close(CudaOps(dtype, 1).add_rms_norm(x_TD, residuals[1], weight_D, 1e-5), expected)
    assert torch.equal(*residuals)
    assert_close(CudaOps(dtype, 1).rms_norm(x_TD, weight_D, 1e-5), TorchOps(dtype).rms_norm(x_TD, weight_D, 1e-5))


@pytest.mark.parametrize(("dtype", "width"), list(zip(DTYPES, [1030, 48, 48], strict=True)))
def test_silu_mul_equals_tier_0(dtype, width):
    gate_up_TF = 4 * randn(3, 2 * width, dtype=dtype)
    assert_close(CudaOps(dtype, 1).silu_mul(gate_up_TF), TorchOps(dtype).silu_mul(gate_up_TF))


def rotated(ops, qkv_TR, shape, norms, kv, slots):
    positions_T = torch.tensor([0, 5, 900, 131071], device=DEVICE)
    frequencies = torch.linspace(1e-4, 1, shape.head_dim // 2, device=DEVICE)
    batch = AttentionBatch((), (), torch.tensor(slots, device=DEVICE), torch.zeros(0, device=DEVICE))
    rotation_TE = ops.rotation(positions_T, frequencies)
    return ops.rotate_and_write(qkv_TR.clone(), shape, norms, rotation_TE, kv, batch)


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (HeadShape(12, 1, 16), torch.float32),
        (HeadShape(2, 2, 96), torch.float16),
        (HeadShape(9, 3, 64), torch.bfloat16),
    ],
)
def test_queries_are_rotated_and_keys_and_values_written_as_tier_0_does(dtype, has_norms, shape):
    _, num_kv_heads, head_dim = shape
    norms = HeadNorms(randn(head_dim, dtype=dtype, seed=1), randn(head_dim, dtype=dtype, seed=2), 1e-6)
    qkv_TR = randn(4, (shape.num_query_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    results = []
    for ops in (TorchOps(dtype), CudaOps(dtype, 1)):
        kv = empty_kv((6, 4, num_kv_heads, head_dim), dtype)
        q_THE = rotated(ops, qkv_TR, shape, norms if has_norms else None, kv, [3, 9, 0, 22])
        results.append((q_THE, kv.key, kv.value))
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected)


def test_an_int8_cache_gets_the_codes_and_scales_of_tier_0():
    shape = HeadShape(3, 2, 32)
    qkv_TR = randn(4, 7 * 32)
    caches = [empty_kv((6, 4, 2, 32), torch.int8) for _ in range(2)]
    for ops, kv in zip((TorchOps(torch.float32), CudaOps(torch.float32, 1)), caches, strict=True):
        rotated(ops, qkv_TR, shape, None, kv, [3, 9, 0, 22])
    expected, actual = caches
    assert torch.equal(actual.key, expected.key)
    assert torch.equal(actual.value, expected.value)
    torch.testing.assert_close(actual.key_scale, expected.key_scale)
    torch.testing.assert_close(actual.value_scale, expected.value_scale)


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.int8])
@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_written_as_zeros(kv_dtype, rubbish):
    shape, kv = HeadShape(1, 1, 16), empty_kv((2, 4, 1, 16), kv_dtype)
    qkv_TR = randn(4, 48)
    qkv_TR[1, 16:] = rubbish
    rotated(CudaOps(torch.float32, 1), qkv_TR, shape, None, kv, [0, 1, 2, 3])
    for cache in (kv.key, kv.value):
        assert (cache[0, 1] == 0).all()
        assert (cache[0, [0, 2, 3]] != 0).any(-1).all()
    if kv.key_scale is not None:
        assert kv.key_scale.isfinite().all()


def test_what_a_narrow_cache_cannot_hold_is_written_as_zeros_not_as_infinity():
    shape, kv = HeadShape(1, 1, 16), empty_kv((2, 4, 1, 16), torch.float16)
    qkv_TR = randn(4, 48)
    qkv_TR[:, 32] = 1e6
    rotated(CudaOps(torch.float32, 1), qkv_TR, shape, None, kv, [0, 1, 2, 3])
    assert (kv.value[0, :, 0, 0] == 0).all()


def test_tokens_of_padding_write_nothing():
    shape, kv = HeadShape(1, 1, 16), empty_kv((2, 4, 1, 16), torch.float32)
    rotated(CudaOps(torch.float32, 1), randn(4, 48), shape, None, kv, [-1, 5, -1, -1])
    assert kv.key.flatten(0, 1).any(-1).any(-1).nonzero().flatten().tolist() == [5]


def test_plain_rows_are_looked_up_and_rows_of_other_ranks_are_zeros():
    weight_VD, rows_T = randn(70, 96), torch.tensor([0, -1, 69, 70, 5], device=DEVICE)
    assert torch.equal(PlainEmbedding(weight_VD, False)(rows_T), TorchEmbedding(weight_VD, None)(rows_T))


def test_quantised_rows_are_dequantised_as_they_are_looked_up():
    weight, rows_T = quantise_int8(randn(70, 96)), torch.tensor([0, -1, 69, 70, 5], device=DEVICE)
    assert weight is not None
    expected_TD = TorchEmbedding(weight.dequantised(), None)(rows_T)
    assert torch.equal(QuantisedEmbedding(pack(weight), torch.float32, False)(rows_T), expected_TD)
