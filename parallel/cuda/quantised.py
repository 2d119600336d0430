"""Products with int8 and int4 weights that are dequantised on their way from memory.

T tokens, R outputs, I inputs, G = I / 32 groups that share a scale, C = 16 bytes, H = 16-byte pieces of a group's codes
in all groups (2 a group for int8, 1 for int4), P parts that the groups are split into.

For few tokens the weight's bytes are the time, so the kernel reads each once, as it is packed: piece after piece, in a
piece output after output, so that what a program reads at a time lies together. Codes are exact in bfloat16; what a
group adds is multiplied by its scale in float32. Outputs are the rows of the small products, because codes can go from
registers into those without a detour. For many tokens arithmetic is the time: the weight is dequantised into a
temporary first and multiplied by cuBLAS.
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
_TILE_OUTPUTS = 128
"""2 KiB of codes a piece, 16 bytes for each of 128 threads. Not measured yet."""
_TILE_DEQUANTISED = 128
_PROGRAMS_PER_MULTIPROCESSOR = 4
"""Programs that should be under way to keep memory busy. Not measured yet."""
_MIN_DOT_TOKENS = 16


class PackedWeight(NamedTuple):
    """A QuantisedMatrix in the order in which the kernels read it."""

    codes_HRC: Tensor
    """int8, inputs 0 to 15 of a group and then 16 to 31; or uint8 with input c in the low and input c + 16 in the high
    half of byte c."""
    scales_GR: Tensor
    """float16."""
    minimums_GR: Tensor
    """float16; for int8, which has none, the scales again."""
    is_int4: bool

    @property
    def num_outputs(self) -> int:
        """R."""
        return self.codes_HRC.shape[1]

    @property
    def num_inputs(self) -> int:
        """I."""
        return len(self.scales_GR) * GROUP_SIZE

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        minimums = self.minimums_GR.nbytes if self.is_int4 else 0
        return self.codes_HRC.nbytes + self.scales_GR.nbytes + minimums


def pack(weight: QuantisedMatrix) -> PackedWeight:
    """Return an INT8 or INT4 weight packed, on the device where it is."""
    codes_HRC = weight.codes_RI.unflatten(1, (-1, GROUP_SIZE // 2)).transpose(0, 1)
    scales_GR = weight.scales_RG.T.contiguous()
    if weight.format is QuantFormat.INT8:
        return PackedWeight(codes_HRC.contiguous(), scales_GR, scales_GR, is_int4=False)
    assert weight.minimums_RG is not None
    both_HRC = (codes_HRC[::2] | (codes_HRC[1::2] << 4)).contiguous()
    return PackedWeight(both_HRC, scales_GR, weight.minimums_RG.T.contiguous(), is_int4=True)


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
        weight.codes_HRC,
        weight.scales_GR,
        weight.minimums_GR,
        part_PTR,
        num_tokens,
        num_outputs,
        len(weight.scales_GR),
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
    num_outputs, num_groups = weight.num_outputs, len(weight.scales_GR)
    w_RI = torch.empty((num_outputs, weight.num_inputs), dtype=dtype, device=weight.codes_HRC.device)
    _dequantise[(triton.cdiv(num_outputs, _TILE_DEQUANTISED), num_groups)](
        weight.codes_HRC,
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
    most = max(1, len(weight.scales_GR) // 8)
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
    acc_RT = tl.zeros((TILE_R, TILE_T), tl.float32)
    groups_of_part = tl.cdiv(num_groups, num_parts)
    for group in range(part * groups_of_part, tl.minimum((part + 1) * groups_of_part, num_groups)):
        at_x_CT = token_T[None, :] * (num_groups * 32) + group * 32 + half_C[:, None]
        low_CT = tl.load(x + at_x_CT, mask=is_token_T[None, :], other=0.0)
        high_CT = tl.load(x + at_x_CT + 16, mask=is_token_T[None, :], other=0.0)
        low_RC, high_RC = _codes(codes, group, output_R, num_outputs, IS_INT4)
        sum_RT = tl.dot(low_RC.to(low_CT.dtype), low_CT, input_precision="ieee")
        sum_RT = tl.dot(high_RC.to(high_CT.dtype), high_CT, sum_RT, input_precision="ieee")
        at_R = group * num_outputs + output_R
        acc_RT += sum_RT * tl.load(scales + at_R, mask=is_output_R, other=0.0).to(tl.float32)[:, None]
        if IS_INT4:
            minimum_R = tl.load(minimums + at_R, mask=is_output_R, other=0.0).to(tl.float32)
            inputs_T = tl.sum(low_CT.to(tl.float32), 0) + tl.sum(high_CT.to(tl.float32), 0)
            acc_RT += minimum_R[:, None] * inputs_T[None, :]
    at_RT = (part * num_tokens + token_T)[None, :] * num_outputs + output_R[:, None]
    tl.store(parts + at_RT, acc_RT, mask=is_token_T[None, :] & is_output_R[:, None])


@triton.jit
def _codes(
    codes: tl.tensor, group: tl.tensor, output_R: tl.tensor, num_outputs: tl.tensor, IS_INT4: tl.constexpr
) -> tl.tensor:
    """Return the codes of a group's first and last 16 inputs, for a tile of outputs."""
    at_RC = output_R[:, None] * 16 + tl.arange(0, 16)[None, :]
    is_output_R1 = (output_R < num_outputs)[:, None]
    piece_bytes = num_outputs.to(tl.int64) * 16
    if IS_INT4:
        both_RC = tl.load(codes + group * piece_bytes + at_RC, mask=is_output_R1, other=0)
        return both_RC & 15, both_RC >> 4
    low_RC = tl.load(codes + 2 * group * piece_bytes + at_RC, mask=is_output_R1, other=0)
    return low_RC, tl.load(codes + (2 * group + 1) * piece_bytes + at_RC, mask=is_output_R1, other=0)


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
    is_output_R = output_R < num_outputs
    at_R = group * num_outputs + output_R
    scale_R = tl.load(scales + at_R, mask=is_output_R, other=0.0).to(tl.float32)
    low_RC, high_RC = _codes(codes, group, output_R, num_outputs, IS_INT4)
    low_RC, high_RC = low_RC.to(tl.float32) * scale_R[:, None], high_RC.to(tl.float32) * scale_R[:, None]
    if IS_INT4:
        minimum_R = tl.load(minimums + at_R, mask=is_output_R, other=0.0).to(tl.float32)
        low_RC, high_RC = low_RC + minimum_R[:, None], high_RC + minimum_R[:, None]
    at_RC = output_R.to(tl.int64)[:, None] * (num_groups * 32) + group * 32 + tl.arange(0, 16)[None, :]
    tl.store(weight + at_RC, low_RC.to(weight.dtype.element_ty), mask=is_output_R[:, None])
    tl.store(weight + at_RC + 16, high_RC.to(weight.dtype.element_ty), mask=is_output_R[:, None])
