"""Attention of rows that compute one token: the context is read by several programs at once, then put together.

T tokens in step, B rows in step, H query heads on this rank, K kv heads on this rank, G query heads of a kv head,
E head dim, N blocks in the pool, S block size, M most blocks of a row, P parts a context is split into.

Flash-Decoding (https://pytorch.org/blog/flash-decoding): with one query a row there are only B * K independent pieces
of work, too few to keep a GPU's memory busy at small B; and at large B a single long context would be what all others
wait for. So every context is read in up to P parts; P depends on the shape of the batch alone, and a short context
leaves the later parts without work, so that a CUDA graph fits every length.
A kv head's query heads share what is read. They are the rows of one small matrix, padded to the 16 that tensor cores
multiply at least; memory is the limit, not arithmetic.
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
_MIN_DOT_ROWS = 16
_PROGRAMS_PER_MULTIPROCESSOR = 4
"""Programs that should be under way, so that some wait for memory while others compute. Not measured yet."""
MAX_PARTS = 64
"""Of a context. At 64 parts a single row of 8 kv heads has 512 programs."""
_FEWEST_PARTS = 4
_USUAL_PART_LEN = 256
"""Tokens that a part has at least where rows alone keep the GPU busy, so that only long contexts are split."""


class Split(NamedTuple):
    """How contexts are split."""

    num_parts: int
    """At most."""
    least_part_len: int
    """Tokens; parts of contexts that are shorter than parts * this come out empty."""


class DecodeLaunch(NamedTuple):
    """How the kernel is launched for a head dim and a width of cached numbers."""

    tile_tokens: int
    num_warps: int
    num_stages: int


_LAUNCHES = {64: DecodeLaunch(128, 4, 3), 128: DecodeLaunch(64, 4, 3), 256: DecodeLaunch(32, 4, 3)}
"""By head dim, rounded up: 16 KiB of keys and as much of values a tile and stage. First guesses, not measured yet."""


def attend_decode_rows(
    q_THE: Tensor, kv: LayerKV, batch: CudaBatch, scale: float, split: Split, out_THE: Tensor
) -> None:
    """Write the rows that compute one token to `out_THE` (mutates). Rows of q may lie apart.

    A row of context length 0 gives zeros; the tokens of longer rows are left as they are.
    """
    _, num_heads, head_dim = q_THE.shape
    _, block_size, num_kv_heads, _ = kv.key.shape
    num_rows = batch.num_rows
    group_size = num_heads // num_kv_heads
    tile_features = max(16, triton.next_power_of_2(head_dim))
    launch = _LAUNCHES[max(64, tile_features)]
    # One part is written where it belongs; more are kept in float32 with their logarithmic weights.
    num_parts, is_split = split.num_parts, split.num_parts > 1
    parts_shape = (num_rows, num_heads, num_parts) if is_split else (0, 0, 0)
    part_BHPE = torch.empty((*parts_shape, head_dim), dtype=torch.float32, device=q_THE.device)
    weight_BHP = torch.empty(parts_shape, dtype=torch.float32, device=q_THE.device)
    _read_part[(num_rows, num_kv_heads, num_parts)](
        q_THE,
        Cache.of(kv),
        Rows.of(batch),
        out_THE,
        part_BHPE,
        weight_BHP,
        scale * _LOG2_E,
        q_THE.stride(0),
        batch.block_table_BM.stride(0),
        batch.block_table_BM.shape[1],
        num_parts,
        split.least_part_len,
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=group_size,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        IS_SPLIT=is_split,
        TILE_G=max(_MIN_DOT_ROWS, triton.next_power_of_2(group_size)),
        TILE_L=launch.tile_tokens,
        TILE_E=tile_features,
        IS_INT8=kv.key_scale is not None,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    if is_split:
        _join_parts[(num_rows, num_heads)](
            part_BHPE,
            weight_BHP,
            batch.query_starts_B1,
            out_THE,
            num_parts,
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            TILE_P=MAX_PARTS,
            TILE_E=tile_features,
            num_warps=4,
        )


def choose_split(num_rows: int, num_kv_heads: int, num_multiprocessors: int) -> Split:
    """Return how contexts are split to keep every multiprocessor busy: from shapes alone."""
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors // max(1, num_rows * num_kv_heads)
    if wanted > _FEWEST_PARTS:
        return Split(min(wanted, MAX_PARTS), least_part_len=1)
    return Split(_FEWEST_PARTS, _USUAL_PART_LEN)


# Not specialised: a table's width changes from step to step, and a new kernel would be compiled in between.
@triton.jit(do_not_specialize=["table_stride", "num_blocks", "num_parts", "least_part_len"])
def _read_part(
    q: tl.tensor,
    cache: tl.tensor,
    rows: tl.tensor,
    out: tl.tensor,
    parts: tl.tensor,
    weights: tl.tensor,
    scale: float,
    q_stride: int,
    table_stride: int,
    num_blocks: int,
    num_parts: int,
    least_part_len: int,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    TILE_G: tl.constexpr,
    TILE_L: tl.constexpr,
    TILE_E: tl.constexpr,
    IS_INT8: tl.constexpr,
) -> None:
    """Attend one row's query heads of one kv head to one part of the row's context."""
    row, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(rows.query_starts + row)
    if tl.load(rows.query_starts + row + 1) - token != 1:
        return
    context_len = tl.load(rows.context_lens + row)
    part_len = tl.maximum(tl.cdiv(context_len, num_parts), least_part_len)
    part_len = tl.cdiv(part_len, TILE_L) * TILE_L
    first = part * part_len
    stop = tl.minimum(first + part_len, context_len)

    group_G, feature_E = tl.arange(0, TILE_G), tl.arange(0, TILE_E)
    head_G = kv_head * GROUP_SIZE + group_G
    is_ours_GE = (group_G < GROUP_SIZE)[:, None] & (feature_E < HEAD_DIM)[None, :]
    at_q = token.to(tl.int64) * q_stride
    q_GE = tl.load(q + at_q + head_G[:, None] * HEAD_DIM + feature_E[None, :], mask=is_ours_GE, other=0.0)
    acc_GE, max_G, sum_G = nothing_attended(TILE_G, TILE_E)
    last_G = tl.zeros((TILE_G,), tl.int32) + (stop - 1)
    block_ids = rows.block_table + row.to(tl.int64) * table_stride
    for tile in range(first, stop, TILE_L):
        acc_GE, max_G, sum_G = attend_tile(
            q_GE, acc_GE, max_G, sum_G, tile, last_G, kv_head, block_ids, num_blocks, cache, scale,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE_L, TILE_E, True, IS_INT8,
        )  # fmt: skip
    # A part without tokens has the sum 0.
    divisor_G = tl.where(sum_G == 0, 1.0, sum_G)
    acc_GE /= divisor_G[:, None]
    if not IS_SPLIT:
        at_out = token.to(tl.int64) * (NUM_KV_HEADS * GROUP_SIZE * HEAD_DIM)
        at_GE = at_out + head_G[:, None] * HEAD_DIM + feature_E[None, :]
        tl.store(out + at_GE, acc_GE.to(out.dtype.element_ty), mask=is_ours_GE)
    else:
        at_part_G = (row * NUM_KV_HEADS * GROUP_SIZE + head_G).to(tl.int64) * num_parts + part
        at_GE = at_part_G[:, None] * HEAD_DIM + feature_E[None, :]
        tl.store(parts + at_GE, acc_GE, mask=is_ours_GE & (first < stop))
        # The part's share of the softmax's denominator, as a logarithm: -inf for a part without tokens.
        tl.store(weights + at_part_G, max_G + tl.log2(divisor_G), mask=group_G < GROUP_SIZE)


@triton.jit(do_not_specialize=["num_parts"])
def _join_parts(
    parts: tl.tensor,
    weights: tl.tensor,
    query_starts: tl.tensor,
    out: tl.tensor,
    num_parts: int,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_E: tl.constexpr,
) -> None:
    """Put the parts of one row and query head together."""
    row, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(query_starts + row)
    if tl.load(query_starts + row + 1) - token != 1:
        return
    part_P, feature_E = tl.arange(0, TILE_P), tl.arange(0, TILE_E)
    at_P = (row * NUM_HEADS + head).to(tl.int64) * num_parts + part_P
    weight_P = tl.load(weights + at_P, mask=part_P < num_parts, other=float("-inf"))
    has_tokens_P = weight_P > float("-inf")
    largest = tl.max(weight_P, 0)
    share_P = tl.where(has_tokens_P, tl.exp2(weight_P - tl.where(largest > float("-inf"), largest, 0.0)), 0.0)
    total = tl.sum(share_P, 0)
    # A part without tokens is not read.
    is_ours_PE = has_tokens_P[:, None] & (feature_E < HEAD_DIM)[None, :]
    part_PE = tl.load(parts + at_P[:, None] * HEAD_DIM + feature_E[None, :], mask=is_ours_PE, other=0.0)
    out_E = tl.sum(part_PE * share_P[:, None], 0) / tl.where(total == 0, 1.0, total)
    at_out = (token.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
    tl.store(out + at_out + feature_E, out_E.to(out.dtype.element_ty), mask=feature_E < HEAD_DIM)
