"""Attention of rows that compute several tokens: a prompt, a chunk of one, or a prompt behind a cached prefix.

T tokens in step, B rows in step, H query heads on this rank, K kv heads on this rank, G query heads of a kv head,
E head dim, N blocks in the pool, S block size, M query heads of a tile (Q tokens, G each), L cached tokens of a tile.

Keys and values are read from the cache alone, where this step's own were written before. One program takes a tile of
consecutive tokens of a row with all query heads of a kv head, so that what it reads serves Q * G queries. Which row a
tile belongs to is found by bisection in `query_starts`: the grid depends on the number of tokens and rows alone.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel.attention.base import LayerKV
from parallel.cuda.attention_tile import Cache, Rows, attend_tile, nothing_attended
from parallel.cuda.batch import CudaBatch

_LOG2_E = 1.4426950408889634


class ExtendLaunch(NamedTuple):
    """How the kernel is launched for a head dim and a width of numbers."""

    tile_queries: int
    """Rows of the tile: tokens times query heads of a kv head."""
    tile_tokens: int
    num_warps: int
    num_stages: int


_LAUNCHES = {64: ExtendLaunch(128, 64, 4, 3), 128: ExtendLaunch(128, 64, 8, 3), 256: ExtendLaunch(64, 32, 8, 2)}
"""By head dim, rounded up. Queries, and stages of keys and values, fit the 227 KiB of a Hopper multiprocessor's shared
memory in bfloat16. First guesses in the range of Triton's fused attention tutorial, not measured yet."""
_WIDE_LAUNCH = ExtendLaunch(32, 32, 4, 2)
"""float32, which has no tensor cores at full precision: for tests, not for speed."""


def attend_longer_rows(q_THE: Tensor, kv: LayerKV, batch: CudaBatch, scale: float, out_THE: Tensor) -> None:
    """Write the rows that compute more than one token to `out_THE` (mutates). Rows of q may lie apart."""
    num_tokens, num_heads, head_dim = q_THE.shape
    _, block_size, num_kv_heads, _ = kv.key.shape
    group_size = num_heads // num_kv_heads
    tile_features = max(16, triton.next_power_of_2(head_dim))
    launch = _launch(q_THE.dtype, tile_features, group_size)
    tile_tokens = launch.tile_queries // group_size
    # A row's tiles start at query_start // Q + row: at least as many as it needs, at most one too many.
    num_tiles = num_tokens // tile_tokens + batch.num_rows
    _extend[(num_tiles, num_kv_heads)](
        q_THE,
        Cache.of(kv),
        Rows.of(batch),
        out_THE,
        scale * _LOG2_E,
        q_THE.stride(0),
        batch.block_table_BM.stride(0),
        batch.block_table_BM.shape[1],
        batch.num_rows,
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        TILE_Q=tile_tokens,
        TILE_M=launch.tile_queries,
        TILE_L=launch.tile_tokens,
        TILE_E=tile_features,
        IS_INT8=kv.key_scale is not None,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def _launch(dtype: torch.dtype, tile_features: int, group_size: int) -> ExtendLaunch:
    launch = _WIDE_LAUNCH if dtype == torch.float32 else _LAUNCHES[max(64, tile_features)]
    # Every query head of a kv head is in a tile, however many there are.
    return launch._replace(tile_queries=max(launch.tile_queries, triton.next_power_of_2(group_size)))


@triton.jit
def _row_of_tile(tile: tl.tensor, query_starts: tl.tensor, num_rows: tl.tensor, TILE_Q: tl.constexpr) -> tl.tensor:
    """Return the last row whose first tile is not behind `tile`."""
    low, high = 0, num_rows - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(query_starts + middle) // TILE_Q + middle <= tile:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit(do_not_specialize=["table_stride", "num_blocks", "num_rows"])
def _extend(
    q: tl.tensor,
    cache: tl.tensor,
    rows: tl.tensor,
    out: tl.tensor,
    scale: float,
    q_stride: int,
    table_stride: int,
    num_blocks: int,
    num_rows: int,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_L: tl.constexpr,
    TILE_E: tl.constexpr,
    IS_INT8: tl.constexpr,
) -> None:
    """Attend one tile of a row's new tokens, for one kv head."""
    # A row's last tiles look furthest back; they start first, so that the short ones fill the end.
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    row = _row_of_tile(tile, rows.query_starts, num_rows, TILE_Q)
    start = tl.load(rows.query_starts + row)
    query_len = tl.load(rows.query_starts + row + 1) - start
    first_query = (tile - (start // TILE_Q + row)) * TILE_Q
    if (query_len < 2) | (first_query >= query_len):
        return
    context_len = tl.load(rows.context_lens + row)

    queries_M, feature_E = tl.arange(0, TILE_M), tl.arange(0, TILE_E)
    query_M = first_query + queries_M // GROUP_SIZE
    head_M = kv_head * GROUP_SIZE + queries_M % GROUP_SIZE
    is_query_M = (queries_M < TILE_Q * GROUP_SIZE) & (query_M < query_len)
    is_ours_ME = is_query_M[:, None] & (feature_E < HEAD_DIM)[None, :]
    token_M = (start + query_M).to(tl.int64)
    at_q_ME = (token_M * q_stride + head_M * HEAD_DIM)[:, None] + feature_E[None, :]
    q_ME = tl.load(q + at_q_ME, mask=is_ours_ME, other=0.0)
    acc_ME, max_M, sum_M = nothing_attended(TILE_M, TILE_E)

    first_position = context_len - query_len + first_query
    last_M = tl.minimum(context_len - query_len + query_M, context_len - 1)
    stop = tl.minimum(first_position + TILE_Q, context_len)
    # Tokens that all queries of the tile may look at need no mask.
    seen_by_all = (first_position + 1) // TILE_L * TILE_L
    block_ids = rows.block_table + row.to(tl.int64) * table_stride
    for first in range(0, seen_by_all, TILE_L):
        acc_ME, max_M, sum_M = attend_tile(
            q_ME, acc_ME, max_M, sum_M, first, last_M, kv_head, block_ids, num_blocks, cache, scale,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE_L, TILE_E, False, IS_INT8,
        )  # fmt: skip
    for first in range(seen_by_all, stop, TILE_L):
        acc_ME, max_M, sum_M = attend_tile(
            q_ME, acc_ME, max_M, sum_M, first, last_M, kv_head, block_ids, num_blocks, cache, scale,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE_L, TILE_E, True, IS_INT8,
        )  # fmt: skip
    at_out_ME = ((token_M * NUM_KV_HEADS * GROUP_SIZE + head_M) * HEAD_DIM)[:, None] + feature_E[None, :]
    tl.store(out + at_out_ME, (acc_ME / sum_M[:, None]).to(out.dtype.element_ty), mask=is_ours_ME)
