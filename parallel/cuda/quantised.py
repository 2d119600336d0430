"""Products with int8 and int4 weights that are dequantised on their way from memory.

T tokens, R outputs, I inputs, G = I / 32 groups that share a scale, C bytes of a group's codes (32 for int8, 16 for
int4), P parts that the groups are split into.

For few tokens the weight's bytes are the time, so the kernel reads each once, as it is packed: group after group, in a
group output after output. Codes are exact in bfloat16; what a group adds is multiplied by its scale in float32. For
many tokens arithmetic is the time: the weight is dequantised into a temporary first and multiplied by cuBLAS.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from parallel.formats.quantised import GROUP_SIZE, QuantFormat, QuantisedMatrix

MAX_KERNEL_TOKENS = 64
"""More tokens are multiplied by cuBLAS. Dequantising moves about 5 bytes a weight where the kernel moves 1, which is
repaid once tensor cores are the limit. Not measured yet."""
_TILE_OUTPUTS = 64
_TILE_DEQUANTISED = 128
_PROGRAMS_PER_MULTIPROCESSOR = 4
"""Programs that should be under way to keep memory busy. Not measured yet."""
_MIN_DOT_TOKENS = 16


class PackedWeight(NamedTuple):
    """A QuantisedMatrix in the order in which the kernels read it."""

    codes_GRC: Tensor
    """int8; or uint8 with input c of the group in the low and input c + 16 in the high half of byte c."""
    scales_GR: Tensor
    """float16."""
    minimums_GR: Tensor
    """float16; for int8, which has none, the scales again."""
    is_int4: bool

    @property
    def num_outputs(self) -> int:
        """R."""
        return self.codes_GRC.shape[1]

    @property
    def num_inputs(self) -> int:
        """I."""
        return self.codes_GRC.shape[0] * GROUP_SIZE

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        minimums = self.minimums_GR.nbytes if self.is_int4 else 0
        return self.codes_GRC.nbytes + self.scales_GR.nbytes + minimums


def pack(weight: QuantisedMatrix) -> PackedWeight:
    """Return an INT8 or INT4 weight packed, on the device where it is."""
    codes_GRC = weight.codes_RI.unflatten(1, (-1, GROUP_SIZE)).transpose(0, 1).contiguous()
    scales_GR = weight.scales_RG.T.contiguous()
    if weight.format is QuantFormat.INT8:
        return PackedWeight(codes_GRC, scales_GR, scales_GR, is_int4=False)
    assert weight.minimums_RG is not None
    low, high = codes_GRC.chunk(2, dim=-1)
    return PackedWeight(low | (high << 4), scales_GR, weight.minimums_RG.T.contiguous(), is_int4=True)


class QuantisedMatmul:
    """y = x @ W^T + b with W in 8.5 or 5 bits a weight."""

    def __init__(
        self, weight: PackedWeight, bias_R: Tensor | None, dtype: torch.dtype, num_multiprocessors: int
    ) -> None:
        """`dtype` is that of the activations."""
        self.weight = weight
        self.num_bytes = weight.num_bytes + (0 if bias_R is None else bias_R.nbytes)
        self.name = f"{'int4' if weight.is_int4 else 'int8'}, triton up to {MAX_KERNEL_TOKENS} tokens, cublas above"
        self._bias_R = bias_R
        self._dtype = dtype
        self._num_parts = _num_parts(weight, num_multiprocessors)

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return y_TR. Which kernel runs depends on the number of tokens alone."""
        if len(x_TI) > MAX_KERNEL_TOKENS:
            return linear(x_TI, dequantise(self.weight, self._dtype), self._bias_R)
        return multiply(x_TI, self.weight, self._bias_R, self._num_parts)

    def shares(self, weight: Tensor) -> bool:
        """Whether `weight` is kept here as it is: never."""
        return False


def multiply(x_TI: Tensor, weight: PackedWeight, bias_R: Tensor | None, num_parts: int) -> Tensor:
    """Return y_TR without a dequantised copy of the weight; inputs are added up in `num_parts` parts."""
    num_tokens, num_outputs = len(x_TI), weight.num_outputs
    y_TR = torch.empty((num_tokens, num_outputs), dtype=x_TI.dtype, device=x_TI.device)
    if not y_TR.numel():
        return y_TR
    part_PTR = torch.empty((num_parts, num_tokens, num_outputs), dtype=torch.float32, device=x_TI.device)
    _multiply[(triton.cdiv(num_outputs, _TILE_OUTPUTS), num_parts)](
        x_TI,
        weight.codes_GRC,
        weight.scales_GR,
        weight.minimums_GR,
        part_PTR,
        num_tokens,
        num_outputs,
        len(weight.codes_GRC),
        num_parts,
        TILE_T=max(_MIN_DOT_TOKENS, triton.next_power_of_2(num_tokens)),
        TILE_R=_TILE_OUTPUTS,
        IS_INT4=weight.is_int4,
        num_warps=4,
        num_stages=4,
    )
    _add_parts[(num_tokens, triton.cdiv(num_outputs, 512))](
        part_PTR,
        part_PTR if bias_R is None else bias_R,
        y_TR,
        num_tokens,
        num_outputs,
        num_parts,
        TILE_R=512,
        HAS_BIAS=bias_R is not None,
        num_warps=4,
    )
    return y_TR


def dequantise(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return w_RI in memory of its own."""
    num_outputs, num_groups = weight.num_outputs, len(weight.codes_GRC)
    w_RI = torch.empty((num_outputs, weight.num_inputs), dtype=dtype, device=weight.codes_GRC.device)
    _dequantise[(triton.cdiv(num_outputs, _TILE_DEQUANTISED), num_groups)](
        weight.codes_GRC,
        weight.scales_GR,
        weight.minimums_GR,
        w_RI,
        num_outputs,
        num_groups,
        TILE_R=_TILE_DEQUANTISED,
        IS_INT4=weight.is_int4,
        num_warps=4,
    )
    return w_RI


def _num_parts(weight: PackedWeight, num_multiprocessors: int) -> int:
    """Return how many programs share the inputs of an output: a power of two, none with less than 8 groups."""
    num_tiles = triton.cdiv(weight.num_outputs, _TILE_OUTPUTS)
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors // max(1, num_tiles)
    most = max(1, len(weight.codes_GRC) // 8)
    return 1 << (max(1, min(wanted, most)).bit_length() - 1)


# Not specialised: whether such numbers divide by 16 is no reason to compile another kernel. Sizes of weights are.
@triton.jit(do_not_specialize=["num_tokens", "num_groups", "num_parts"])
def _multiply(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    minimums: tl.tensor,
    parts: tl.tensor,
    num_tokens: int,
    num_outputs: int,
    num_groups: int,
    num_parts: int,
    TILE_T: tl.constexpr,
    TILE_R: tl.constexpr,
    IS_INT4: tl.constexpr,
) -> None:
    """Multiply all tokens by one tile of outputs, over one part of the inputs."""
    part = tl.program_id(1)
    token_T, output_R = tl.arange(0, TILE_T), tl.program_id(0) * TILE_R + tl.arange(0, TILE_R)
    is_token_T, is_output_R = token_T < num_tokens, output_R < num_outputs
    half_C = tl.arange(0, 16)
    acc_TR = tl.zeros((TILE_T, TILE_R), tl.float32)
    groups_of_part = tl.cdiv(num_groups, num_parts)
    for group in range(part * groups_of_part, tl.minimum((part + 1) * groups_of_part, num_groups)):
        at_R = group * num_outputs + output_R
        at_x_TC = token_T[:, None] * (num_groups * 32) + group * 32 + half_C[None, :]
        low_TC = tl.load(x + at_x_TC, mask=is_token_T[:, None], other=0.0)
        high_TC = tl.load(x + at_x_TC + 16, mask=is_token_T[:, None], other=0.0)
        low_CR, high_CR = _codes(codes, at_R, is_output_R, half_C, IS_INT4)
        sum_TR = tl.dot(low_TC, low_CR.to(low_TC.dtype), input_precision="ieee")
        sum_TR = tl.dot(high_TC, high_CR.to(high_TC.dtype), sum_TR, input_precision="ieee")
        scale_R = tl.load(scales + at_R, mask=is_output_R, other=0.0).to(tl.float32)
        acc_TR += sum_TR * scale_R[None, :]
        if IS_INT4:
            minimum_R = tl.load(minimums + at_R, mask=is_output_R, other=0.0).to(tl.float32)
            inputs_T = tl.sum(low_TC.to(tl.float32), 1) + tl.sum(high_TC.to(tl.float32), 1)
            acc_TR += inputs_T[:, None] * minimum_R[None, :]
    at_TR = (part * num_tokens + token_T)[:, None] * num_outputs + output_R[None, :]
    tl.store(parts + at_TR, acc_TR, mask=is_token_T[:, None] & is_output_R[None, :])


@triton.jit
def _codes(
    codes: tl.tensor, at_R: tl.tensor, is_output_R: tl.tensor, half_C: tl.tensor, IS_INT4: tl.constexpr
) -> tl.tensor:
    """Return the codes of a group's first and last 16 inputs."""
    if IS_INT4:
        at_CR = at_R.to(tl.int64)[None, :] * 16 + half_C[:, None]
        both_CR = tl.load(codes + at_CR, mask=is_output_R[None, :], other=0)
        return both_CR & 15, both_CR >> 4
    at_CR = at_R.to(tl.int64)[None, :] * 32 + half_C[:, None]
    low_CR = tl.load(codes + at_CR, mask=is_output_R[None, :], other=0)
    return low_CR, tl.load(codes + at_CR + 16, mask=is_output_R[None, :], other=0)


@triton.jit(do_not_specialize=["num_tokens", "num_parts"])
def _add_parts(
    parts: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    num_tokens: int,
    num_outputs: int,
    num_parts: int,
    TILE_R: tl.constexpr,
    HAS_BIAS: tl.constexpr,
) -> None:
    """Add up the parts of one token, always in the same order."""
    token, output_R = tl.program_id(0), tl.program_id(1) * TILE_R + tl.arange(0, TILE_R)
    is_ours_R = output_R < num_outputs
    sum_R = tl.zeros((TILE_R,), tl.float32)
    for part in range(num_parts):
        sum_R += tl.load(parts + (part * num_tokens + token) * num_outputs + output_R, mask=is_ours_R, other=0.0)
    if HAS_BIAS:
        sum_R += tl.load(bias + output_R, mask=is_ours_R, other=0.0).to(tl.float32)
    tl.store(y + token * num_outputs + output_R, sum_R.to(y.dtype.element_ty), mask=is_ours_R)


@triton.jit
def _dequantise(
    codes: tl.tensor,
    scales: tl.tensor,
    minimums: tl.tensor,
    weight: tl.tensor,
    num_outputs: int,
    num_groups: int,
    TILE_R: tl.constexpr,
    IS_INT4: tl.constexpr,
) -> None:
    """Write one group of inputs of a tile of outputs as floats."""
    group, output_R = tl.program_id(1), tl.program_id(0) * TILE_R + tl.arange(0, TILE_R)
    is_output_R, half_C = output_R < num_outputs, tl.arange(0, 16)
    at_R = group * num_outputs + output_R
    scale_R = tl.load(scales + at_R, mask=is_output_R, other=0.0).to(tl.float32)
    low_CR, high_CR = _codes(codes, at_R, is_output_R, half_C, IS_INT4)
    low_CR, high_CR = low_CR.to(tl.float32) * scale_R[None, :], high_CR.to(tl.float32) * scale_R[None, :]
    if IS_INT4:
        minimum_R = tl.load(minimums + at_R, mask=is_output_R, other=0.0).to(tl.float32)
        low_CR, high_CR = low_CR + minimum_R[None, :], high_CR + minimum_R[None, :]
    at_CR = output_R.to(tl.int64)[None, :] * (num_groups * 32) + group * 32 + half_C[:, None]
    tl.store(weight + at_CR, low_CR.to(weight.dtype.element_ty), mask=is_output_R[None, :])
    tl.store(weight + at_CR + 16, high_CR.to(weight.dtype.element_ty), mask=is_output_R[None, :])
