"""Norm and rotate queries and keys, and write keys and values into the paged cache: one launch a layer.

T tokens in step, H query heads on this rank, K kv heads on this rank, E head dim, X heads of a program, F = E / 2
features that turn together with F others, N blocks in the pool, S block size, R = (H + 2 K) * E.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel.attention.base import LayerKV
from parallel.ops.base import HeadNorms, HeadShape

_MAX_TILE_HEADS = 8
"""Heads of a program: at head dim 128 that is 16 bytes of bfloat16 for each of 128 threads. Not measured yet."""
_INT8_CODES = 127


def rotate_and_write(
    qkv_TR: Tensor, shape: HeadShape, norms: HeadNorms | None, rotation_TE: Tensor, kv: LayerKV, slots_T: Tensor
) -> Tensor:
    """Write keys and values at `slots_T` (a slot below 0: nowhere); return q_THE, a view of `qkv_TR`, which is mutated.

    int8 caches get one scale a token and head: the largest magnitude / 127. What the cache cannot hold, because it is
    not finite or too large, is written as zeros.
    """
    num_heads, num_kv_heads, head_dim = shape
    num_tokens = len(qkv_TR)
    tile_heads = min(_MAX_TILE_HEADS, triton.next_power_of_2(max(num_heads, num_kv_heads)))
    num_query_tiles, num_key_tiles = triton.cdiv(num_heads, tile_heads), triton.cdiv(num_kv_heads, tile_heads)
    is_int8 = kv.key_scale is not None
    if num_tokens:
        _rotate[(num_tokens, num_query_tiles + num_key_tiles)](
            qkv_TR,
            rotation_TE,
            slots_T,
            kv.key,
            kv.value,
            kv.key if kv.key_scale is None else kv.key_scale,
            kv.value if kv.value_scale is None else kv.value_scale,
            rotation_TE if norms is None else norms.q_E,
            rotation_TE if norms is None else norms.k_E,
            0.0 if norms is None else norms.eps,
            torch.finfo(torch.float32 if is_int8 else kv.key.dtype).max,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            NUM_QUERY_TILES=num_query_tiles,
            HEAD_DIM=head_dim,
            TILE_X=tile_heads,
            TILE_F=triton.next_power_of_2(head_dim // 2),
            HAS_NORMS=norms is not None,
            IS_INT8=is_int8,
            CODES=_INT8_CODES,
            num_warps=4,
        )
    return qkv_TR.view(num_tokens, -1, head_dim)[:, :num_heads]


@triton.jit
def _rotate(
    qkv: tl.tensor,
    rotation: tl.tensor,
    slots: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    key_scale: tl.tensor,
    value_scale: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    eps: float,
    limit: float,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    NUM_QUERY_TILES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_F: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    IS_INT8: tl.constexpr,
    CODES: tl.constexpr,
) -> None:
    """Rotate some query heads of a token in place; or write some of its key and value heads to the cache."""
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pair_F = tl.arange(0, TILE_F)
    cos_F = tl.load(rotation + token * HEAD_DIM + pair_F, mask=pair_F < HEAD_DIM // 2, other=0.0).to(tl.float32)
    at_sin = rotation + token * HEAD_DIM + HEAD_DIM // 2
    sin_F = tl.load(at_sin + pair_F, mask=pair_F < HEAD_DIM // 2, other=0.0).to(tl.float32)
    heads = qkv + token * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    if tile < NUM_QUERY_TILES:
        head_X = tile * TILE_X + tl.arange(0, TILE_X)
        is_ours_XF = (head_X < NUM_HEADS)[:, None] & (pair_F < HEAD_DIM // 2)[None, :]
        at_XF = head_X[:, None] * HEAD_DIM + pair_F[None, :]
        left_XF, right_XF = _turned(
            heads, at_XF, is_ours_XF, q_norm, pair_F, cos_F, sin_F, eps, HEAD_DIM, HAS_NORMS
        )  # fmt: skip
        tl.store(heads + at_XF, left_XF.to(qkv.dtype.element_ty), mask=is_ours_XF)
        tl.store(heads + at_XF + HEAD_DIM // 2, right_XF.to(qkv.dtype.element_ty), mask=is_ours_XF)
    else:
        slot = tl.load(slots + token).to(tl.int64)
        head_X = (tile - NUM_QUERY_TILES) * TILE_X + tl.arange(0, TILE_X)
        is_head_X = (head_X < NUM_KV_HEADS) & (slot >= 0)
        is_ours_XF = is_head_X[:, None] & (pair_F < HEAD_DIM // 2)[None, :]
        at_XF = (NUM_HEADS + head_X)[:, None] * HEAD_DIM + pair_F[None, :]
        left_XF, right_XF = _turned(
            heads, at_XF, is_ours_XF, k_norm, pair_F, cos_F, sin_F, eps, HEAD_DIM, HAS_NORMS
        )  # fmt: skip
        at_cache_X = slot * NUM_KV_HEADS + head_X
        at_cache_XF = at_cache_X[:, None] * HEAD_DIM + pair_F[None, :]
        _write(key, key_scale, left_XF, right_XF, at_cache_X, at_cache_XF, is_head_X, is_ours_XF, limit,
               HEAD_DIM, IS_INT8, CODES)  # fmt: skip
        at_value_XF = at_XF + NUM_KV_HEADS * HEAD_DIM
        left_XF = tl.load(heads + at_value_XF, mask=is_ours_XF, other=0.0).to(tl.float32)
        right_XF = tl.load(heads + at_value_XF + HEAD_DIM // 2, mask=is_ours_XF, other=0.0).to(tl.float32)
        _write(value, value_scale, left_XF, right_XF, at_cache_X, at_cache_XF, is_head_X, is_ours_XF, limit,
               HEAD_DIM, IS_INT8, CODES)  # fmt: skip


@triton.jit
def _turned(
    heads: tl.tensor,
    at_XF: tl.tensor,
    is_ours_XF: tl.tensor,
    norm: tl.tensor,
    pair_F: tl.tensor,
    cos_F: tl.tensor,
    sin_F: tl.tensor,
    eps: tl.tensor,
    HEAD_DIM: tl.constexpr,
    HAS_NORM: tl.constexpr,
) -> tl.tensor:
    """Return the first and the second half of some heads' features, normed and rotated, float32."""
    left_XF = tl.load(heads + at_XF, mask=is_ours_XF, other=0.0).to(tl.float32)
    right_XF = tl.load(heads + at_XF + HEAD_DIM // 2, mask=is_ours_XF, other=0.0).to(tl.float32)
    if HAS_NORM:
        square_X = tl.sum(left_XF * left_XF, 1) + tl.sum(right_XF * right_XF, 1)
        inverse_X = tl.rsqrt(square_X / HEAD_DIM + eps)
        is_pair_F = pair_F < HEAD_DIM // 2
        left_F = tl.load(norm + pair_F, mask=is_pair_F, other=0.0).to(tl.float32)
        right_F = tl.load(norm + HEAD_DIM // 2 + pair_F, mask=is_pair_F, other=0.0).to(tl.float32)
        left_XF *= inverse_X[:, None] * left_F[None, :]
        right_XF *= inverse_X[:, None] * right_F[None, :]
    turned_left_XF = left_XF * cos_F[None, :] - right_XF * sin_F[None, :]
    return turned_left_XF, right_XF * cos_F[None, :] + left_XF * sin_F[None, :]


@triton.jit
def _write(
    cache: tl.tensor,
    cache_scale: tl.tensor,
    left_XF: tl.tensor,
    right_XF: tl.tensor,
    at_cache_X: tl.tensor,
    at_cache_XF: tl.tensor,
    is_head_X: tl.tensor,
    is_ours_XF: tl.tensor,
    limit: tl.tensor,
    HEAD_DIM: tl.constexpr,
    IS_INT8: tl.constexpr,
    CODES: tl.constexpr,
) -> None:
    """Write both halves of some heads to their place in the cache."""
    # A NaN is not below the limit either.
    left_XF = tl.where(tl.abs(left_XF) <= limit, left_XF, 0.0)
    right_XF = tl.where(tl.abs(right_XF) <= limit, right_XF, 0.0)
    if IS_INT8:
        largest_X = tl.maximum(tl.max(tl.abs(left_XF), 1), tl.max(tl.abs(right_XF), 1))
        scale_X = largest_X / CODES
        tl.store(cache_scale + at_cache_X, scale_X, mask=is_head_X)
        left_XF = _rounded(left_XF, scale_X)
        right_XF = _rounded(right_XF, scale_X)
    tl.store(cache + at_cache_XF, left_XF.to(cache.dtype.element_ty), mask=is_ours_XF)
    tl.store(cache + at_cache_XF + HEAD_DIM // 2, right_XF.to(cache.dtype.element_ty), mask=is_ours_XF)


@triton.jit
def _rounded(x_XF: tl.tensor, scale_X: tl.tensor) -> tl.tensor:
    """Return x / scale rounded to the nearest whole number, halves to the even one; 0 where the scale is 0."""
    codes_XF = tl.div_rn(x_XF, tl.where(scale_X == 0, 1.0, scale_X)[:, None])
    # Beside 1.5 * 2^23 float32 has no room for a fraction, so adding it rounds as torch.round does.
    return (codes_XF + 12582912.0) - 12582912.0
