"""One tile of attention over the paged cache: what the decode and the extend kernel have in common.

M rows of the tile (query heads of one kv head, of one or of several tokens), L cached tokens of the tile, E head dim,
N blocks in the pool, S block size, K kv heads on this rank.

The softmax is computed tile by tile (arXiv 2205.14135): a row keeps the largest score so far, the sum of its weights
relative to that score, and the weighted sum of values. Scores are in units of log 2, because the hardware has exp2.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from parallel.attention.base import LayerKV
from parallel.cuda.batch import CudaBatch


class Cache(NamedTuple):
    """One layer's paged cache; without scales, the cache itself stands for them and is not read."""

    key: Tensor
    value: Tensor
    key_scale: Tensor
    value_scale: Tensor

    @classmethod
    def of(cls, kv: LayerKV) -> "Cache":
        """Return what kernels are given of a layer."""
        key_scale, value_scale = kv.key_scale, kv.value_scale
        return cls(
            kv.key,
            kv.value,
            kv.key if key_scale is None else key_scale,
            kv.value if value_scale is None else value_scale,
        )


class Rows(NamedTuple):
    """Which tokens and which blocks belong to a row."""

    query_starts: Tensor
    context_lens: Tensor
    block_table: Tensor

    @classmethod
    def of(cls, batch: CudaBatch) -> "Rows":
        """Return what kernels are given of a batch."""
        return cls(batch.query_starts_B1, batch.context_lens_B, batch.block_table_BM)


@triton.jit
def nothing_attended(TILE_M: tl.constexpr, TILE_E: tl.constexpr) -> tl.tensor:
    """Return acc_ME, max_M and sum_M before the first tile."""
    max_M = tl.full((TILE_M,), float("-inf"), tl.float32)
    return tl.zeros((TILE_M, TILE_E), tl.float32), max_M, tl.zeros((TILE_M,), tl.float32)


@triton.jit
def attend_tile(
    q_ME: tl.tensor,
    acc_ME: tl.tensor,
    max_M: tl.tensor,
    sum_M: tl.tensor,
    first: tl.tensor,
    last_M: tl.tensor,
    kv_head: tl.tensor,
    block_ids: tl.tensor,
    num_blocks: tl.tensor,
    cache: tl.tensor,
    scale: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_L: tl.constexpr,
    TILE_E: tl.constexpr,
    IS_MASKED: tl.constexpr,
    IS_INT8: tl.constexpr,
) -> tl.tensor:
    """Return acc_ME, max_M and sum_M with the cached tokens `first` to `first + L - 1` taken in.

    `last_M` is the last position a row may look at; without IS_MASKED every row may look at the whole tile. `block_ids`
    points to the row's `num_blocks` entries of the block table.
    """
    position_L = first + tl.arange(0, TILE_L)
    feature_E = tl.arange(0, TILE_E)
    # Block ids are 64 bits wide: a cache has more than 2^31 numbers.
    block_L = position_L // BLOCK_SIZE
    is_cached_L = block_L < num_blocks
    slot_L = tl.load(block_ids + block_L, mask=is_cached_L, other=0).to(tl.int64) * BLOCK_SIZE + position_L % BLOCK_SIZE
    head_L = slot_L * NUM_KV_HEADS + kv_head
    is_feature_E = feature_E < HEAD_DIM
    # What is cached is finite (see rope.py), so positions that are masked below may be read.
    k_EL = tl.load(cache.key + head_L[None, :] * HEAD_DIM + feature_E[:, None], mask=is_feature_E[:, None], other=0.0)
    # int8 is exact in bfloat16; the scales multiply scores and weights, which are fewer than keys and values.
    scores_ML = tl.dot(q_ME, k_EL.to(q_ME.dtype), input_precision="ieee") * scale
    if IS_INT8:
        scores_ML *= tl.load(cache.key_scale + head_L)[None, :]
    if IS_MASKED:
        scores_ML = tl.where(position_L[None, :] <= last_M[:, None], scores_ML, float("-inf"))
    # A row's first tile holds a token it may look at, so that the maximum is finite from then on.
    new_max_M = tl.maximum(max_M, tl.max(scores_ML, 1))
    shrink_M = tl.exp2(max_M - new_max_M)
    weights_ML = tl.exp2(scores_ML - new_max_M[:, None])
    sum_M = sum_M * shrink_M + tl.sum(weights_ML, 1)
    v_LE = tl.load(cache.value + head_L[:, None] * HEAD_DIM + feature_E[None, :], mask=is_feature_E[None, :], other=0.0)
    if IS_INT8:
        weights_ML *= tl.load(cache.value_scale + head_L)[None, :]
    new_ME = tl.dot(weights_ML.to(q_ME.dtype), v_LE.to(q_ME.dtype), input_precision="ieee")
    return acc_ME * shrink_M[:, None] + new_ME, new_max_M, sum_M
