"""The CPU tier's paged KV cache: its layout, and what C is told of it.

N blocks in the pool, K kv heads on this rank, E head dim, P tokens a block.
"""

import torch

from parallel.attention.base import KVLayout, LayerKV
from parallel.cpu import abi
from parallel.ops.base import HeadShape

TOKENS_SIDE_BY_SIDE = 16
"""Tokens of a block whose keys lie side by side, as the lanes of a vector; a block is a multiple of it."""


def kv_layout(block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> KVLayout:
    """Return the order that eagle.h describes; bfloat16, or int8 with scales."""
    key = (num_kv_heads, block_size // TOKENS_SIDE_BY_SIDE, head_dim // 2, TOKENS_SIDE_BY_SIDE, 2)
    value = (num_kv_heads, block_size // 2, head_dim, 2)
    return KVLayout(key, value, (num_kv_heads, block_size) if dtype == torch.int8 else None, dtype)


def heads_of(shape: HeadShape, kv: LayerKV, scale: float, eps: float) -> abi.Heads:
    """Return what attention is told besides the step; `eps` is that of the norms over heads, if there are any."""
    return abi.Heads(
        num_query_heads=shape.num_query_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        block_size=kv.key.shape[2] * TOKENS_SIDE_BY_SIDE,
        kv_format=abi.KVFormat.INT8 if kv.key.dtype == torch.int8 else abi.KVFormat.BF16,
        scale=scale,
        eps=eps,
    )


def kv_of(kv: LayerKV) -> abi.KV:
    """Return the addresses of one layer's KV; `kv` keeps the memory alive."""
    return abi.KV(
        keys=kv.key.data_ptr(),
        values=kv.value.data_ptr(),
        key_scales=None if kv.key_scale is None else kv.key_scale.data_ptr(),
        value_scales=None if kv.value_scale is None else kv.value_scale.data_ptr(),
    )
