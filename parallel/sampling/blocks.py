"""Reductions over long rows in two levels: argmax and inverse CDF touch each number once, then one block in detail.

A plain argmax of a 49152-wide row costs ten times a maximum on a CPU (0.055 against 0.005 ms), and a float64 running
sum thirty times a sum; a block of 256 numbers costs nothing.

R rows, V width, C blocks, W block width.
"""

import torch
from torch import Tensor

BLOCK_WIDTH = 256


def row_max(x_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's maximum and where it first occurs. NaN wins over everything; then the place means nothing."""
    num_whole, _ = divmod(x_RV.shape[1], BLOCK_WIDTH)
    maxima = [_whole(x_RV, num_whole).amax(2)] if num_whole else []
    if x_RV.shape[1] % BLOCK_WIDTH:
        maxima.append(x_RV[:, num_whole * BLOCK_WIDTH :].amax(1, keepdim=True))
    _, block_R = torch.cat(maxima, 1).max(1)
    window_RW, start_R = _window(x_RV, block_R)
    # Where the window reaches back before its block, everything is below the maximum: its block is the first with it.
    max_R, place_R = window_RW.max(1)
    return max_R, start_R + place_R


def block_sums(x_RV: Tensor) -> Tensor:
    """Return float64 sums_RC of consecutive blocks, the last one possibly narrower."""
    num_whole, _ = divmod(x_RV.shape[1], BLOCK_WIDTH)
    sums = [_whole(x_RV, num_whole).sum(2, dtype=torch.float64)] if num_whole else []
    if x_RV.shape[1] % BLOCK_WIDTH:
        sums.append(x_RV[:, num_whole * BLOCK_WIDTH :].sum(1, keepdim=True, dtype=torch.float64))
    return torch.cat(sums, 1)


def pick(weights_RV: Tensor, sums_RC: Tensor, target_R: Tensor) -> Tensor:
    """Return the first place where the running sum of a row's weights exceeds its target; never one of weight 0.

    `sums_RC` are the weights' block sums. A target outside the row's mass gives its first or last place with a weight.
    """
    block_R, before_R = first_over(sums_RC, target_R)
    window_RW, start_R = _window(weights_RV, block_R)
    place_RW = start_R[:, None] + torch.arange(window_RW.shape[1], device=window_RW.device)
    window_RW = window_RW.double().masked_fill_(place_RW < block_R[:, None] * BLOCK_WIDTH, 0.0)
    place_R, _ = first_over(window_RW, target_R - before_R)
    return start_R + place_R


def first_over(weights_RK: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index whose running sum exceeds the target, and the sum before it; float64, never weight 0."""
    sums_RK = weights_RK.cumsum(1)
    # A target that rounding pushed up to the whole mass, or past it, belongs to the last weight.
    below_total_R = torch.nextafter(sums_RK[:, -1], torch.zeros_like(target_R))
    target_R = torch.minimum(target_R, below_total_R).clamp(min=0)
    index_R = (sums_RK <= target_R[:, None]).sum(1).clamp(max=weights_RK.shape[1] - 1)
    index_R1 = index_R[:, None]
    return index_R, (sums_RK.gather(1, index_R1) - weights_RK.gather(1, index_R1))[:, 0]


def _whole(x_RV: Tensor, num_whole: int) -> Tensor:
    return x_RV[:, : num_whole * BLOCK_WIDTH].unflatten(1, (num_whole, BLOCK_WIDTH))


def _window(x_RV: Tensor, block_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return one block of each row, and where it starts; the last block reaches back to be as wide as the others."""
    width = min(BLOCK_WIDTH, x_RV.shape[1])
    start_R = (block_R * BLOCK_WIDTH).clamp(max=x_RV.shape[1] - width)
    row_R = torch.arange(len(x_RV), device=x_RV.device)
    return x_RV.unfold(1, width, 1)[row_R, start_R], start_R
