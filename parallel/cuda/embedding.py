"""Rows of a weight, looked up by token id, from a plain table or out of a quantised head.

T tokens in step, D model dim, V vocabulary rows on this rank, G = D / 32 groups that share a scale.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel.cuda.quantised import PackedWeight


class PlainEmbedding:
    """Rows of a plain weight."""

    def __init__(self, weight_VD: Tensor, shares_memory: bool) -> None:
        self._weight_VD = weight_VD
        self.num_bytes = 0 if shares_memory else weight_VD.nbytes

    def __call__(self, rows_T: Tensor) -> Tensor:
        """Return x_TD, zeros for rows that are not in the table."""
        num_rows, width = self._weight_VD.shape
        x_TD = torch.empty((len(rows_T), width), dtype=self._weight_VD.dtype, device=rows_T.device)
        if x_TD.numel():
            _look_up[(len(rows_T), triton.cdiv(width, 1024))](
                rows_T, self._weight_VD, x_TD, num_rows, WIDTH=width, TILE_D=1024, num_warps=4
            )
        return x_TD


class QuantisedEmbedding:
    """Rows of a quantised weight, which may be a head's."""

    def __init__(self, weight: PackedWeight, dtype: torch.dtype, shares_memory: bool) -> None:
        self._weight = weight
        self._dtype = dtype
        self.num_bytes = 0 if shares_memory else weight.num_bytes

    def __call__(self, rows_T: Tensor) -> Tensor:
        """Return x_TD, zeros for rows that are not in the table."""
        weight, num_groups = self._weight, len(self._weight.scales_GR)
        x_TD = torch.empty((len(rows_T), weight.num_inputs), dtype=self._dtype, device=rows_T.device)
        if x_TD.numel():
            _look_up_quantised[(len(rows_T),)](
                rows_T,
                weight.codes_HRC,
                weight.scales_GR,
                weight.minimums_GR,
                x_TD,
                NUM_ROWS=weight.num_outputs,
                NUM_GROUPS=num_groups,
                TILE_G=triton.next_power_of_2(num_groups),
                IS_INT4=weight.is_int4,
                num_warps=4,
            )
        return x_TD


@triton.jit
def _look_up(
    rows: tl.tensor, weight: tl.tensor, out: tl.tensor, num_rows: int, WIDTH: tl.constexpr, TILE_D: tl.constexpr
) -> None:
    token, feature_D = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    row = tl.load(rows + token).to(tl.int64)
    is_ours_D = feature_D < WIDTH
    is_here_D = is_ours_D & (row >= 0) & (row < num_rows)
    x_D = tl.load(weight + row * WIDTH + feature_D, mask=is_here_D, other=0.0)
    tl.store(out + token * WIDTH + feature_D, x_D, mask=is_ours_D)


@triton.jit
def _look_up_quantised(
    rows: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    minimums: tl.tensor,
    out: tl.tensor,
    NUM_ROWS: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TILE_G: tl.constexpr,
    IS_INT4: tl.constexpr,
) -> None:
    """Dequantise one token's row, group by group beside each other."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token).to(tl.int64)
    group_G, half_C = tl.arange(0, TILE_G), tl.arange(0, 16)
    is_group_G = group_G < NUM_GROUPS
    is_here_G = is_group_G & (row >= 0) & (row < NUM_ROWS)
    at_G = group_G.to(tl.int64) * NUM_ROWS + row
    scale_G = tl.load(scales + at_G, mask=is_here_G, other=0.0).to(tl.float32)
    if IS_INT4:
        both_GC = tl.load(codes + at_G[:, None] * 16 + half_C[None, :], mask=is_here_G[:, None], other=0)
        minimum_G = tl.load(minimums + at_G, mask=is_here_G, other=0.0).to(tl.float32)
        low_GC = (both_GC & 15).to(tl.float32) * scale_G[:, None] + minimum_G[:, None]
        high_GC = (both_GC >> 4).to(tl.float32) * scale_G[:, None] + minimum_G[:, None]
    else:
        at_GC = (2 * group_G.to(tl.int64) * NUM_ROWS + row)[:, None] * 16 + half_C[None, :]
        low_GC = tl.load(codes + at_GC, mask=is_here_G[:, None], other=0).to(tl.float32) * scale_G[:, None]
        at_high_GC = at_GC + NUM_ROWS * 16
        high_GC = tl.load(codes + at_high_GC, mask=is_here_G[:, None], other=0).to(tl.float32) * scale_G[:, None]
    at_out_GC = token * (NUM_GROUPS * 32) + group_G[:, None] * 32 + half_C[None, :]
    tl.store(out + at_out_GC, low_GC.to(out.dtype.element_ty), mask=is_group_G[:, None])
    tl.store(out + at_out_GC + 16, high_GC.to(out.dtype.element_ty), mask=is_group_G[:, None])
