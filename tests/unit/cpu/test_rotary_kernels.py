"""Norms over heads, rotation, and what the cache is given, in C against tier 0."""

import pytest
import torch
from torch import Tensor

from parallel.attention.base import AttentionBatch, LayerKV
from parallel.cpu.library import KernelLibrary
from parallel.cpu.ops import CpuOps
from parallel.ops.base import HeadNorms, HeadShape
from parallel.ops.torch_ops import TorchOps
from tests.support.cpu_kv import dequantised, empty_kv, packed, unpacked
from tests.support.kernel_libraries import LEVELS, kernel_library, thread_pool

FORMATS = (torch.bfloat16, torch.int8)
SHAPES = (HeadShape(9, 3, 64), HeadShape(4, 4, 32), HeadShape(2, 1, 256))
NUM_BLOCKS, BLOCK_SIZE = 6, 32
# Neighbours in one block, apart, across blocks, and alone in a pair of slots.
SLOTS_T = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 64, 65, 97, 130, 129, 191, 40])


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest) -> KernelLibrary:
    return kernel_library(request.param)


def a_qkv(shape: HeadShape, seed: int = 0) -> Tensor:
    num_heads = shape.num_query_heads + 2 * shape.num_kv_heads
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(SLOTS_T), num_heads * shape.head_dim, generator=generator)


def a_rotation(shape: HeadShape) -> Tensor:
    frequencies = 10000 ** -torch.linspace(0, 1, shape.head_dim // 2)
    return TorchOps(torch.float32).rotation(torch.arange(len(SLOTS_T)) * 7, frequencies)


def norms_of(shape: HeadShape) -> HeadNorms:
    q_E, k_E = torch.rand(2, shape.head_dim, generator=torch.Generator().manual_seed(9)) + 0.5
    return HeadNorms(q_E, k_E, eps=1e-6)


def a_cache(shape: HeadShape, dtype: torch.dtype) -> LayerKV:
    return empty_kv(NUM_BLOCKS, BLOCK_SIZE, shape.num_kv_heads, shape.head_dim, dtype)


def write(
    library: KernelLibrary,
    qkv_TR: Tensor,
    shape: HeadShape,
    dtype: torch.dtype,
    norms: HeadNorms | None = None,
    num_threads: int = 1,
) -> tuple[Tensor, LayerKV]:
    """Return the rotated queries and the cache as tier 0 would keep it."""
    kv = packed(a_cache(shape, dtype))
    batch = AttentionBatch((1,) * len(SLOTS_T), (1,) * len(SLOTS_T), SLOTS_T, torch.zeros(len(SLOTS_T), 1))
    ops = CpuOps(library, thread_pool(num_threads, library.level))
    q_THE = ops.rotate_and_write(qkv_TR.clone(), shape, norms, a_rotation(shape), kv, batch)
    return q_THE, unpacked(kv)


def tier_0(
    qkv_TR: Tensor, shape: HeadShape, dtype: torch.dtype, norms: HeadNorms | None = None
) -> tuple[Tensor, LayerKV]:
    kv = a_cache(shape, dtype)
    batch = AttentionBatch((1,) * len(SLOTS_T), (1,) * len(SLOTS_T), SLOTS_T, torch.zeros(len(SLOTS_T), 1))
    return TorchOps(torch.float32).rotate_and_write(qkv_TR, shape, norms, a_rotation(shape), kv, batch), kv


def test_angles_are_exact_at_positions_of_any_length(library: KernelLibrary):
    positions_T = torch.tensor([0, 1, 1000, 32767, 131071, 1_000_003])
    frequencies = 500000 ** -torch.linspace(0, 1, 32)
    rotation_TE = CpuOps(library, thread_pool(2, library.level)).rotation(positions_T, frequencies)
    # The angle is a float32 product, as others have it; its cosine and sine are those of float64.
    angles = (positions_T.float().unsqueeze(1) * frequencies).double()
    exact_TE = torch.cat((angles.cos(), angles.sin()), dim=1)
    torch.testing.assert_close(rotation_TE.double(), exact_TE, rtol=0, atol=2**-23)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("has_norms", (False, True), ids=("plain", "norms"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_queries_and_cache_are_those_of_tier_0(
    library: KernelLibrary, shape: HeadShape, has_norms: bool, dtype: torch.dtype
):
    qkv_TR, norms = a_qkv(shape), norms_of(shape) if has_norms else None
    q_THE, kv = write(library, qkv_TR, shape, dtype, norms)
    expected_q_THE, expected_kv = tier_0(qkv_TR, shape, dtype, norms)
    torch.testing.assert_close(q_THE, expected_q_THE, rtol=1e-6, atol=2e-6)
    # A float32 that differs in its last bit may round the other way: one code, or one bfloat16, further.
    for ours, theirs in zip(dequantised(kv), dequantised(expected_kv), strict=True):
        largest = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=largest / 127 if dtype == torch.int8 else 1e-5)
        assert ((ours - theirs).abs() > largest / 1000).float().mean() < 0.01


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_values_are_rounded_once_and_nothing_else_is_touched(library: KernelLibrary, dtype: torch.dtype):
    shape = SHAPES[0]
    _, kv = write(library, a_qkv(shape), shape, dtype)
    _, expected = tier_0(a_qkv(shape), shape, dtype)
    assert torch.equal(kv.value, expected.value)
    is_written = torch.zeros(NUM_BLOCKS * BLOCK_SIZE, dtype=torch.bool)
    is_written[SLOTS_T] = True
    assert torch.equal(kv.key.flatten(0, 1).flatten(1).any(1), is_written)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_any_threads_write_the_same_bits(library: KernelLibrary, dtype: torch.dtype):
    shape = SHAPES[0]
    q_THE, kv = write(library, a_qkv(shape), shape, dtype, norms_of(shape))
    threaded_q_THE, threaded_kv = write(library, a_qkv(shape), shape, dtype, norms_of(shape), num_threads=4)
    assert torch.equal(q_THE, threaded_q_THE)
    assert torch.equal(kv.key, threaded_kv.key) and torch.equal(kv.value, threaded_kv.value)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf), ids=str)
def test_what_is_not_finite_is_written_as_zero(library: KernelLibrary, bad: float, dtype: torch.dtype):
    shape = SHAPES[0]
    qkv_TR = a_qkv(shape)
    first_key, first_value = 9 * 64, 12 * 64
    qkv_TR[3, first_key + 64 + 5] = qkv_TR[3, first_value + 64 + 7] = bad
    _, kv = write(library, qkv_TR, shape, dtype)
    keys, values = (x.flatten(0, 1)[3, 1] for x in dequantised(kv))
    # The feature that turns together with the bad one is spoilt too.
    assert (keys == 0).nonzero().flatten().tolist() == [5, 37]
    assert values[7] == 0 and values.isfinite().all() and values.count_nonzero() > 50
    _, clean = write(library, a_qkv(shape), shape, dtype)
    assert torch.equal(kv.key.flatten(0, 1)[4], clean.key.flatten(0, 1)[4])


def test_a_number_too_large_for_bfloat16_is_written_as_zero(library: KernelLibrary):
    shape = SHAPES[0]
    qkv_TR = a_qkv(shape)
    qkv_TR[0, 12 * 64] = torch.finfo(torch.float32).max
    _, kv = write(library, qkv_TR, shape, torch.bfloat16)
    assert kv.value[0, 0, 0, 0] == 0


def test_a_key_of_zeros_has_a_scale_of_zero(library: KernelLibrary):
    shape = SHAPES[0]
    _, kv = write(library, torch.zeros_like(a_qkv(shape)), shape, torch.int8)
    assert not kv.key.any() and kv.key_scale is not None and not kv.key_scale.any()
