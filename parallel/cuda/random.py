"""The random numbers of `sampling/random.py` on the device: SplitMix64 of (seed, position), the same to the bit.

For steps that the device goes on with by itself. Where the host knows a step's positions, its numbers do as well.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def uniforms(seeds_S: Tensor, positions_S: Tensor) -> Tensor:
    """Return float64 numbers in [0, 1), one for each (seed, position); both are int64, the bits of a uint64."""
    out_S = torch.empty(seeds_S.shape, dtype=torch.float64, device=seeds_S.device)
    if len(out_S):
        _uniforms[(triton.cdiv(len(out_S), 128),)](seeds_S, positions_S, out_S, len(out_S), TILE_S=128, num_warps=4)
    return out_S


@triton.jit(do_not_specialize=["num_rows"])
def _uniforms(seeds: tl.tensor, positions: tl.tensor, out: tl.tensor, num_rows: int, TILE_S: tl.constexpr) -> None:
    row_S = tl.program_id(0) * TILE_S + tl.arange(0, TILE_S)
    is_ours_S = row_S < num_rows
    seed_S = tl.load(seeds + row_S, mask=is_ours_S, other=0)
    position_S = tl.load(positions + row_S, mask=is_ours_S, other=0)
    tl.store(out + row_S, _uniform(seed_S, position_S), mask=is_ours_S)


@triton.jit
def _uniform(seed: tl.tensor, position: tl.tensor) -> tl.tensor:
    counter = (position.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    bits = _mix(_mix(seed.to(tl.uint64)) + counter) >> 11
    return bits.to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def _mix(x: tl.tensor) -> tl.tensor:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
