"""The KV tensors of one rank, one pair a layer.

N blocks in the pool, S block size, K kv heads on this rank, E head dim.
"""

import torch

from core.errors import OutOfMemory
from parallel.attention.base import LayerKV


class KVCache:
    """`num_blocks` blocks of `block_size` tokens in each layer; which request owns a block only the leader knows."""

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate, zero-filled. Raises OutOfMemory with the size that was asked."""
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        self.num_bytes = 2 * num_layers * num_blocks * block_size * num_kv_heads * head_dim * dtype.itemsize
        try:
            self.layers = tuple(
                LayerKV(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
                for _ in range(num_layers)
            )
        except (torch.OutOfMemoryError, RuntimeError) as error:
            # The CPU allocator says "not enough memory" as a plain RuntimeError.
            if not isinstance(error, torch.OutOfMemoryError) and "memory" not in str(error):
                raise
            raise OutOfMemory(
                f"KV cache of {self.num_bytes / 2**20:.0f} MiB ({num_blocks} blocks of {block_size} tokens) "
                "cannot be allocated; lower cache.memory"
            ) from None

    def clear(self, num_blocks: int) -> None:
        """Fill the first `num_blocks` blocks with zeros, as after construction."""
        for layer in self.layers:
            layer.key_NSKE[:num_blocks].zero_()
            layer.value_NSKE[:num_blocks].zero_()
