"""A layer's KV in the order of tier 0, and the same in the order of the CPU tier.

N blocks in the pool, P tokens a block, K kv heads, E head dim, T tokens.
"""

import torch
from torch import Tensor

from parallel.attention.base import LayerKV
from parallel.attention.sdpa import write_kv


def random_kv(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, seed: int = 0
) -> LayerKV:
    """Return keys and values of tier 0, bfloat16 or int8."""
    kv = empty_kv(num_blocks, block_size, num_kv_heads, head_dim, dtype)
    random = torch.Generator().manual_seed(seed)
    k_TKE, v_TKE = torch.randn(2, num_blocks * block_size, num_kv_heads, head_dim, generator=random)
    write_kv(kv, k_TKE, v_TKE, torch.arange(num_blocks * block_size))
    return kv


def empty_kv(num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> LayerKV:
    """Return zeros."""
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    key, value = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    if dtype != torch.int8:
        return LayerKV(key, value)
    return LayerKV(key, value, torch.zeros(shape[:3]), torch.zeros(shape[:3]))


def packed(kv: LayerKV) -> LayerKV:
    """Return the same numbers as the CPU tier keeps them (eagle.h): the other way round of `unpacked`."""
    # Blocks N, heads K, sixteens of tokens, pairs of features, the token among 16, the feature of the pair.
    key = kv.key.unflatten(1, (-1, 16)).unflatten(-1, (-1, 2)).permute(0, 3, 1, 4, 2, 5)
    # Blocks N, heads K, pairs of tokens, features E, the token of the pair.
    value = kv.value.unflatten(1, (-1, 2)).permute(0, 3, 1, 4, 2)
    return LayerKV(key.contiguous(), value.contiguous(), _transposed(kv.key_scale), _transposed(kv.value_scale))


def unpacked(kv: LayerKV) -> LayerKV:
    """Return the CPU tier's numbers as tier 0 keeps them."""
    key = kv.key.permute(0, 2, 4, 1, 3, 5).flatten(4, 5).flatten(1, 2)
    value = kv.value.permute(0, 2, 4, 1, 3).flatten(1, 2)
    return LayerKV(key.contiguous(), value.contiguous(), _transposed(kv.key_scale), _transposed(kv.value_scale))


def dequantised(kv: LayerKV) -> tuple[Tensor, Tensor]:
    """Return tier 0's keys and values in float64, NPKE."""
    if kv.key_scale is None or kv.value_scale is None:
        return kv.key.double(), kv.value.double()
    return kv.key.double() * kv.key_scale.unsqueeze(-1), kv.value.double() * kv.value_scale.unsqueeze(-1)


def _transposed(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else scale.transpose(1, 2).contiguous()
