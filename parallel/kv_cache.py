"""The KV tensors of one rank, one pair a layer.

N blocks in the pool, S block size, K kv heads on this rank, E head dim.
"""

import math
import mmap

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
                LayerKV(_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for _ in range(num_layers)
            )
        except (torch.OutOfMemoryError, OSError, RuntimeError) as error:
            # The CPU allocator says "not enough memory" as a plain RuntimeError, a mapping "Cannot allocate memory".
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


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros; on a CPU memory is taken page by page when it is first written, so unused blocks cost nothing."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch would write its zeros; an anonymous mapping has them from the kernel.
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
