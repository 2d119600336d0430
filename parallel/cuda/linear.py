"""Products with floating-point weights: cuBLAS in the weight's own precision, or fp8 on tensor cores that have it.

T tokens, R outputs, I inputs.
"""

import inspect
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import linear

from parallel.formats.quantised import QuantisedMatrix

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
"""448, the largest number of e4m3."""
FP8_ALIGNMENT = 16
"""`scaled_mm` wants inputs and outputs in multiples of this."""

ScaledMatmul = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, torch.dtype], Tensor]
"""(x_TI, w_RI, scale_T1, scale_R1, bias_R, dtype) -> y_TR of that dtype, x and w in fp8."""


class CublasMatmul:
    """Uses the weight as it was loaded."""

    def __init__(self, weight_RI: Tensor, bias_R: Tensor | None, remark: str = "") -> None:
        """`remark`: what else to say about the weight."""
        self._weight_RI, self._bias_R = weight_RI, bias_R
        self.num_bytes = weight_RI.nbytes + (0 if bias_R is None else bias_R.nbytes)
        self.name = f"{str(weight_RI.dtype).removeprefix('torch.')}, cublas{remark}"

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return y_TR."""
        return linear(x_TI, self._weight_RI, self._bias_R)

    def shares(self, weight: Tensor) -> bool:
        """Whether `weight` is kept here as it is."""
        return self._weight_RI.data_ptr() == weight.data_ptr()


class Fp8Matmul:
    """Weight and activations in fp8: a scale an output, fixed, and a scale a token, taken from the token."""

    name = "fp8 e4m3 by row, scaled_mm"

    def __init__(self, weight: QuantisedMatrix, bias_R: Tensor | None, multiply: ScaledMatmul) -> None:
        """`weight` is in FP8, and `can_be_fp8`."""
        self._weight_RI, self._scale_R1 = weight.codes_RI, weight.scales_RG
        self._bias_R = bias_R
        self._multiply = multiply
        self.num_bytes = sum(x.nbytes for x in (self._weight_RI, self._scale_R1, bias_R) if x is not None)

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return y_TR in the precision of `x_TI`."""
        x_fp8_TI, scale_T1 = quantise_rows(x_TI)
        return self._multiply(x_fp8_TI, self._weight_RI, scale_T1, self._scale_R1, self._bias_R, x_TI.dtype)

    def shares(self, weight: Tensor) -> bool:
        """Whether `weight` is kept here as it is: never."""
        return False


def can_be_fp8(weight: QuantisedMatrix) -> bool:
    """Return whether the matrix has sizes that `scaled_mm` takes."""
    return all(size % FP8_ALIGNMENT == 0 for size in weight.shape)


def scaled_matmul() -> ScaledMatmul | None:
    """Return this torch's product of fp8 matrices with a scale a row, None if it has none that we know."""
    public = vars(functional).get("scaled_mm")
    if public is not None and {"scale_recipe_a", "output_dtype"} <= set(inspect.signature(public).parameters):
        return _public_scaled_mm
    return _private_scaled_mm if hasattr(torch.ops.aten, "_scaled_mm") else None


def _public_scaled_mm(
    x_TI: Tensor, w_RI: Tensor, scale_T1: Tensor, scale_R1: Tensor, bias_R: Tensor | None, dtype: torch.dtype
) -> Tensor:
    by_row = functional.ScalingType.RowWise
    return functional.scaled_mm(
        x_TI, w_RI.T, scale_T1, by_row, scale_R1.T, by_row, bias=bias_R, output_dtype=dtype, use_fast_accum=True
    )


def _private_scaled_mm(
    x_TI: Tensor, w_RI: Tensor, scale_T1: Tensor, scale_R1: Tensor, bias_R: Tensor | None, dtype: torch.dtype
) -> Tensor:
    multiply = torch.ops.aten._scaled_mm.default
    return multiply(x_TI, w_RI.T, scale_T1, scale_R1.T, bias=bias_R, out_dtype=dtype, use_fast_accum=True)


def quantise_rows(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Return x in fp8 and float32 scale_T1, such that x is about fp8 * scale; the largest of a row is 448."""
    num_tokens, width = x_TI.shape
    x_fp8_TI = torch.empty((num_tokens, width), dtype=FP8, device=x_TI.device)
    scale_T1 = torch.empty((num_tokens, 1), dtype=torch.float32, device=x_TI.device)
    if num_tokens:
        tile_width = triton.next_power_of_2(width)
        _quantise_rows[(num_tokens,)](
            x_TI,
            x_fp8_TI,
            scale_T1,
            WIDTH=width,
            TILE_I=tile_width,
            LARGEST=FP8_MAX,
            num_warps=min(16, max(1, tile_width // 256)),
        )
    return x_fp8_TI, scale_T1


@triton.jit
def _quantise_rows(
    x: tl.tensor, out: tl.tensor, scale: tl.tensor, WIDTH: tl.constexpr, TILE_I: tl.constexpr, LARGEST: tl.constexpr
) -> None:
    token, input_I = tl.program_id(0).to(tl.int64), tl.arange(0, TILE_I)
    is_ours_I = input_I < WIDTH
    x_I = tl.load(x + token * WIDTH + input_I, mask=is_ours_I, other=0.0).to(tl.float32)
    row_scale = tl.maximum(tl.max(tl.abs(x_I), 0) / LARGEST, 1e-12)
    # Maxima pass over NaN. A token that is not finite has no scale: its row of the result is lost, and no other.
    num_broken = tl.sum(tl.where(tl.abs(x_I) < float("inf"), 0, 1), 0)
    row_scale = tl.where(num_broken == 0, row_scale, float("nan"))
    x_I = tl.minimum(tl.maximum(x_I / row_scale, -LARGEST), LARGEST)
    tl.store(out + token * WIDTH + input_I, x_I.to(out.dtype.element_ty), mask=is_ours_I)
    tl.store(scale + token, row_scale)
