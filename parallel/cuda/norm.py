"""RMS norm of the residual stream, with the addition that comes before it: one pass over memory instead of three.

T tokens in step, D model dim.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight in memory of its own."""
    out_TD = torch.empty_like(x_TD)
    _launch(x_TD, None, weight_D, out_TD, eps)
    return out_TD


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Add `x_TD` to `residual_TD` (mutates), then return the residual's norm."""
    out_TD = torch.empty_like(x_TD)
    _launch(x_TD, residual_TD, weight_D, out_TD, eps)
    return out_TD


def _launch(x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, out_TD: Tensor, eps: float) -> None:
    num_tokens, width = x_TD.shape
    tile_width = triton.next_power_of_2(width)
    if num_tokens:
        _norm[(num_tokens,)](
            x_TD,
            x_TD if residual_TD is None else residual_TD,
            weight_D,
            out_TD,
            eps,
            WIDTH=width,
            TILE_D=tile_width,
            HAS_RESIDUAL=residual_TD is not None,
            # 16 bytes a thread of what a token has in bfloat16, between one warp and sixteen. Not measured yet.
            num_warps=min(16, max(1, tile_width // 256)),
        )


@triton.jit
def _norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: float,
    WIDTH: tl.constexpr,
    TILE_D: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
) -> None:
    """Norm one token; the whole of it is held in registers."""
    at_D = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, TILE_D)
    feature_D = tl.arange(0, TILE_D)
    is_ours_D = feature_D < WIDTH
    x_D = tl.load(x + at_D, mask=is_ours_D, other=0.0)
    if HAS_RESIDUAL:
        sum_D = x_D.to(tl.float32) + tl.load(residual + at_D, mask=is_ours_D, other=0.0).to(tl.float32)
        # What is normed is what is kept, rounded as it is kept.
        x_D = sum_D.to(residual.dtype.element_ty)
        tl.store(residual + at_D, x_D, mask=is_ours_D)
    x_D = x_D.to(tl.float32)
    weight_D = tl.load(weight + feature_D, mask=is_ours_D, other=0.0).to(tl.float32)
    mean_square = tl.sum(x_D * x_D, 0) / WIDTH
    out_D = x_D * tl.rsqrt(mean_square + eps) * weight_D
    tl.store(out + at_D, out_D.to(out.dtype.element_ty), mask=is_ours_D)
