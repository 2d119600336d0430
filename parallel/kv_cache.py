"""The KV tensors of one rank, one pair a layer."""

import math
import mmap

import torch

from core.errors import OutOfMemory
from parallel.attention.base import KVLayout, LayerKV


class KVCache:
    """`num_blocks` blocks in each layer; which request owns a block only the leader knows."""

    def __init__(self, num_layers: int, num_blocks: int, layout: KVLayout, device: torch.device) -> None:
        """Allocate, zero-filled. Raises OutOfMemory with the size that was asked."""
        self.num_bytes = num_layers * num_blocks * layout.block_bytes
        try:
            self.layers = tuple(_layer(num_blocks, layout, device) for _ in range(num_layers))
        except (torch.OutOfMemoryError, OSError, RuntimeError) as error:
            # The CPU allocator says "not enough memory" as a plain RuntimeError, a mapping "Cannot allocate memory".
            if not isinstance(error, torch.OutOfMemoryError) and "memory" not in str(error):
                raise
            raise OutOfMemory(
                f"KV cache of {self.num_bytes / 2**20:.0f} MiB ({num_blocks} blocks) cannot be allocated; "
                "lower cache.memory"
            ) from None

    def clear(self, num_blocks: int) -> None:
        """Fill the first `num_blocks` blocks with zeros, as after construction."""
        for layer in self.layers:
            for tensor in (layer.key, layer.value, layer.key_scale, layer.value_scale):
                if tensor is not None:
                    tensor[:num_blocks].zero_()


def _layer(num_blocks: int, layout: KVLayout, device: torch.device) -> LayerKV:
    key, value = (_zeros((num_blocks, *shape), layout.dtype, device) for shape in (layout.key, layout.value))
    if layout.scale is None:
        return LayerKV(key, value)
    scales = (_zeros((num_blocks, *layout.scale), torch.float32, device) for _ in range(2))
    return LayerKV(key, value, *scales)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros; on a CPU memory is taken page by page when it is first written, so unused blocks cost nothing."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch would write its zeros; an anonymous mapping has them from the kernel.
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
