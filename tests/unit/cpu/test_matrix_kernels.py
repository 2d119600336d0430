"""Packed matrices against float64, at every level this CPU runs.

T tokens, I inputs, R outputs, F columns of a gated product.
"""

import ctypes
from ctypes import byref
from functools import cache

import pytest
import torch
from torch import Tensor

from parallel.cpu.arena import Arena
from parallel.cpu.library import KernelLibrary
from parallel.cpu.matrix import CpuEmbedding, CpuMatmul
from parallel.cpu.threads import ThreadPool
from parallel.formats.quantised import GROUP_SIZE, QuantFormat, QuantisedMatrix
from tests.support import emulated_amx
from tests.support.kernel_libraries import LEVELS, kernel_library

FORMATS = ("bf16", "int8", "int4")
SHAPES = ((1, 32), (15, 32), (16, 64), (50, 96), (97, 160))
STORE, ADD = 0, 1

Weight = Tensor | QuantisedMatrix


@pytest.fixture(params=[*LEVELS, emulated_amx.NAME])
def library(request: pytest.FixtureRequest) -> KernelLibrary:
    if request.param == emulated_amx.NAME:
        return emulated_amx.emulated_amx_library()
    return kernel_library(request.param)


@cache
def thread_pool(library: KernelLibrary, num_threads: int) -> ThreadPool:
    return ThreadPool(library, num_threads)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_weight(kind: str, num_outputs: int, num_inputs: int, seed: int = 0) -> Weight:
    generator = torch.Generator().manual_seed(seed)
    shape, groups = (num_outputs, num_inputs), (num_outputs, num_inputs // GROUP_SIZE)
    if kind == "bf16":
        return torch.randn(shape, generator=generator).bfloat16()
    scales_RG = torch.rand(groups, generator=generator).half() * 0.01
    if kind == "int8":
        codes_RI = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
        return QuantisedMatrix(QuantFormat.INT8, codes_RI, scales_RG)
    codes_RI = torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)
    minimums_RG = torch.randn(groups, generator=generator).half() * 0.05
    return QuantisedMatrix(QuantFormat.INT4, codes_RI, scales_RG, minimums_RG)


def exact(weight: Weight) -> Tensor:
    return weight.double() if isinstance(weight, Tensor) else weight.dequantised().double()


def exact_inputs(num_tokens: int, num_inputs: int) -> Tensor:
    """Return inputs that neither bfloat16 nor int8 per group rounds: whole eighths whose groups all reach 127/8."""
    generator = torch.Generator().manual_seed(2)
    x_TI = torch.randint(-127, 128, (num_tokens, num_inputs), generator=generator).float()
    x_TI[:, ::GROUP_SIZE] = 127
    return x_TI / 8


def packed(library: KernelLibrary, weight: Weight, bias_R: Tensor | None = None, num_threads: int = 1) -> CpuMatmul:
    return CpuMatmul(library, thread_pool(library, num_threads), Arena(1 << 20), weight, bias_R)


class Kernels:
    """The calls between a step's C files, with what eg_prepare left."""

    def __init__(self, matmul: CpuMatmul, library: KernelLibrary, x_TI: Tensor, pool: int | None = None) -> None:
        self._calls, self._pool, self._matmul = library.calls, pool, matmul
        address, number, width = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self._calls.eg_prepare.argtypes = (address, width, address, number, number, width, address, address)
        self._calls.eg_product.argtypes = (address, address, address, address, number, ctypes.c_int)
        self._calls.eg_product_silu_mul.argtypes = (address, address, address, address, number)
        self._calls.eg_inputs_bytes.argtypes = (width, number, width)
        self._calls.eg_inputs_bytes.restype = ctypes.c_size_t
        num_tokens, num_inputs = x_TI.shape
        num_bytes = self._calls.eg_inputs_bytes(matmul.matrix.format, num_tokens, num_inputs)
        self._buffer = Arena(1 << 16).take(num_bytes)
        self._inputs = ctypes.create_string_buffer(64)
        kept = (matmul.matrix.format, x_TI.data_ptr(), x_TI.stride(0), num_tokens, num_inputs, self._buffer.data_ptr())
        self._calls.eg_prepare(pool, *kept, self._inputs)

    def product(self, y_TR: Tensor, output: int) -> Tensor:
        """Store the product in `y_TR`, or add it."""
        where = (y_TR.data_ptr(), y_TR.stride(0), output)
        self._calls.eg_product(self._pool, byref(self._matmul.matrix), self._inputs, *where)
        return y_TR

    def gated(self, y_TF: Tensor) -> Tensor:
        """Store silu(gate) * up in `y_TF`."""
        where = (y_TF.data_ptr(), y_TF.stride(0))
        self._calls.eg_product_silu_mul(self._pool, byref(self._matmul.matrix), self._inputs, *where)
        return y_TF


# ---- values ----


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("num_tokens", [1, 3, 8, 21])
def test_product_of_inputs_that_are_not_rounded_is_that_of_float64(library: KernelLibrary, kind: str, num_tokens: int):
    for num_outputs, num_inputs in SHAPES:
        weight, bias_R = random_weight(kind, num_outputs, num_inputs), random(num_outputs, seed=1)
        x_TI = exact_inputs(num_tokens, num_inputs)
        products_TRI = x_TI.double().unsqueeze(1) * exact(weight)
        expected_TR = products_TRI.sum(dim=2) + bias_R
        error_TR = (packed(library, weight, bias_R)(x_TI) - expected_TR).abs()
        assert (error_TR <= 1e-6 * products_TRI.abs().sum(dim=2) + 1e-6).all(), (num_outputs, num_inputs)


def test_bfloat16_product_rounds_its_inputs_and_nothing_else(library: KernelLibrary):
    weight_RI, x_TI = random_weight("bf16", 40, 62), random(5, 62)
    assert isinstance(weight_RI, Tensor)
    expected_TR = x_TI.bfloat16().double() @ weight_RI.double().T
    torch.testing.assert_close(packed(library, weight_RI)(x_TI).double(), expected_TR, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_product_is_off_by_no_more_than_half_a_step_of_each_input(library: KernelLibrary, kind: str):
    weight, x_TI = random_weight(kind, 40, 160), random(9, 160)
    steps_TG = x_TI.unflatten(1, (-1, GROUP_SIZE)).abs().amax(dim=2) / 127
    most_TR = 0.501 * steps_TG.repeat_interleave(GROUP_SIZE, dim=1).double() @ exact(weight).abs().T
    error_TR = (packed(library, weight)(x_TI) - x_TI.double() @ exact(weight).T).abs()
    assert (error_TR <= most_TR + 1e-6).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_no_inputs_at_all_leave_the_bias(library: KernelLibrary, kind: str):
    bias_R = random(20)
    assert torch.equal(packed(library, random_weight(kind, 20, 64), bias_R)(torch.zeros(3, 64)), bias_R.expand(3, -1))
    assert torch.equal(packed(library, random_weight(kind, 20, 0), bias_R)(torch.zeros(3, 0)), bias_R.expand(3, -1))


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_times_nothing_is_nothing(library: KernelLibrary, kind: str):
    assert packed(library, random_weight(kind, 0, 64))(torch.zeros(3, 64)).shape == (3, 0)
    assert packed(library, random_weight(kind, 20, 64))(torch.zeros(0, 64)).shape == (0, 20)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_token_that_is_not_finite_spoils_its_own_outputs_only(library: KernelLibrary, kind: str, broken: float):
    matmul, x_TI = packed(library, random_weight(kind, 33, 64)), random(5, 64)
    expected_TR = matmul(x_TI)
    x_TI[2, 40] = broken
    y_TR = matmul(x_TI)
    assert not y_TR[2].isfinite().any()
    others = [0, 1, 3, 4]
    assert torch.equal(y_TR[others], expected_TR[others])


# ---- the same bits ----


@pytest.mark.parametrize("kind", FORMATS)
def test_token_has_the_same_bits_in_every_batch_and_on_any_number_of_threads(library: KernelLibrary, kind: str):
    weight, bias_R, x_TI = random_weight(kind, 97, 96), random(97), random(70, 96)
    by_threads = [packed(library, weight, bias_R, num_threads) for num_threads in (1, 2, 3, 4)]
    alone_TR = torch.cat([by_threads[0](x_I.unsqueeze(0)) for x_I in x_TI])
    for num_tokens in range(71):
        # All numbers of threads meet all remainders of a block.
        for matmul in (by_threads[num_tokens % 4], by_threads[num_tokens // 4 % 4]):
            assert torch.equal(matmul(x_TI[:num_tokens]), alone_TR[:num_tokens]), num_tokens


@pytest.mark.parametrize("kind", FORMATS)
def test_matrix_packed_in_pieces_is_the_matrix(library: KernelLibrary, kind: str):
    weight, x_TI = random_weight(kind, 50, 64), random(4, 64)
    whole = packed(library, weight)
    pieces = packed(library, weight)
    matrix, calls = byref(pieces.matrix), library.calls
    torch.frombuffer((ctypes.c_uint8 * pieces.num_bytes).from_address(pieces.matrix.packed), dtype=torch.uint8).fill_(1)
    for first, count in ((32, 18), (0, 16), (16, 16)):
        if isinstance(weight, Tensor):
            calls.eg_pack_bf16(matrix, first, count, weight[first].data_ptr())
            continue
        parts = [weight.codes_RI, weight.scales_RG, *([] if weight.minimums_RG is None else [weight.minimums_RG])]
        pack = calls.eg_pack_int8 if kind == "int8" else calls.eg_pack_int4
        pack(matrix, first, count, *(part[first].data_ptr() for part in parts))
    assert torch.equal(pieces(x_TI), whole(x_TI))


# ---- where results go ----


@pytest.mark.parametrize("kind", FORMATS)
def test_product_is_added_to_what_is_there_and_touches_nothing_else(library: KernelLibrary, kind: str):
    x_TI, bias_R = random(11, 64), random(50, seed=1)
    matmul = packed(library, random_weight(kind, 50, 64), bias_R)
    kernels, residual_TX = Kernels(matmul, library, x_TI), random(12, 60, seed=3)
    y_TX = residual_TX.clone()
    kernels.product(y_TX[:11, :50], ADD)
    assert torch.equal(y_TX[:11, :50], residual_TX[:11, :50] + matmul(x_TI))
    assert torch.equal(y_TX[:, 50:], residual_TX[:, 50:])
    assert torch.equal(y_TX[11], residual_TX[11])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("num_columns", [1, 40, 96])
def test_gated_product_is_the_product_and_then_the_activation(library: KernelLibrary, kind: str, num_columns: int):
    matmul = packed(library, random_weight(kind, 2 * num_columns, 64), random(2 * num_columns, seed=1))
    for num_tokens, num_threads in ((0, 1), (1, 1), (9, 1), (20, 3)):
        pool, x_TI = thread_pool(library, num_threads).pointer, random(num_tokens, 64)
        gate_up_TF, expected_TF = matmul(x_TI), torch.empty(num_tokens, num_columns)
        library.calls.eg_silu_mul(None, gate_up_TF.data_ptr(), num_tokens, num_columns, expected_TF.data_ptr())
        y_TF = torch.full((num_tokens + 1, num_columns + 3), 7.0)
        Kernels(matmul, library, x_TI, pool).gated(y_TF[:num_tokens, :num_columns])
        assert torch.equal(y_TF[:num_tokens, :num_columns], expected_TF)
        assert (y_TF[num_tokens:] == 7).all() and (y_TF[:, num_columns:] == 7).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_inputs_are_read_at_their_stride(library: KernelLibrary, kind: str):
    matmul, wide_TX = packed(library, random_weight(kind, 20, 64)), random(9, 100)
    y_TR = Kernels(matmul, library, wide_TX[:, :64]).product(torch.empty(9, 20), STORE)
    assert torch.equal(y_TR, matmul(wide_TX[:, :64]))


# ---- embeddings, and the Python side ----


@pytest.mark.parametrize("kind", FORMATS)
def test_embedding_returns_rows_of_the_weight_and_zeros_for_other_ranks(library: KernelLibrary, kind: str):
    weight = random_weight(kind, 50, 96)
    table = CpuEmbedding(packed(library, weight, num_threads=2))
    rows_T = torch.tensor([49, 0, -1, 16, 50, 10**12, 15] * 8)
    expected_TD = torch.stack([exact(weight)[row] if 0 <= row < 50 else torch.zeros(96).double() for row in rows_T])
    assert torch.equal(table(rows_T), expected_TD.float())
    assert table(rows_T[:0]).shape == (0, 96)


def test_matmul_tells_its_format_and_its_memory():
    library = kernel_library()
    matmuls = {kind: packed(library, random_weight(kind, 32, 128)) for kind in FORMATS}
    assert {kind: matmul.name for kind, matmul in matmuls.items()} == {kind: kind for kind in FORMATS}
    sizes = {kind: matmul.num_bytes for kind, matmul in matmuls.items()}
    assert sizes == {"bf16": 32 * 128 * 2, "int8": 32 * 128 * 34 // 32, "int4": 32 * 128 * 20 // 32}


def test_tied_embedding_takes_no_memory_of_its_own():
    matmul = packed(kernel_library(), random_weight("bf16", 32, 64))
    assert (CpuEmbedding(matmul).num_bytes, CpuEmbedding(matmul, is_tied=False).num_bytes) == (0, matmul.num_bytes)


def test_float32_weight_is_rounded_to_bfloat16():
    weight_RI, x_TI = random(20, 64), random(3, 64, seed=1)
    library = kernel_library()
    assert torch.equal(packed(library, weight_RI)(x_TI), packed(library, weight_RI.bfloat16())(x_TI))


def test_weights_and_inputs_that_are_not_contiguous_are_read_as_they_look():
    library, weight_IR, x_IT = kernel_library(), random(64, 20).bfloat16(), random(64, 3, seed=1)
    assert torch.equal(packed(library, weight_IR.T)(x_IT.T), packed(library, weight_IR.T.clone())(x_IT.T.clone()))


def test_matmul_keeps_its_bias_alive():
    library, x_TI = kernel_library(), random(3, 64)
    matmul = packed(library, random_weight("bf16", 20, 64), random(20, seed=1).double())
    plain = packed(library, random_weight("bf16", 20, 64))
    assert torch.equal(matmul(x_TI), plain(x_TI) + random(20, seed=1))
