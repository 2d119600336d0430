"""Steps for attention kernels: a paged cache full of other requests' keys and values, and tier 0 to compare with."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.attention.base import AttentionBatch, LayerKV
from parallel.attention.sdpa import write_kv
from parallel.cuda.batch import CudaBatch
from parallel.ops.torch_ops import TorchOps
from tests.support.kernel_device import DEVICE

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass
class Step:
    """Queries of a step whose keys and values are in the cache."""

    q_THE: Tensor
    kv: LayerKV
    batch: AttentionBatch

    @property
    def scale(self) -> float:
        return self.q_THE.shape[-1] ** -0.5

    @property
    def cuda_batch(self) -> CudaBatch:
        return CudaBatch.of(self.batch)

    def by_tier_0(self) -> Tensor:
        """Return out_THE."""
        return TorchOps(self.q_THE.dtype).attend(self.q_THE, self.kv, self.batch, self.scale)

    def assert_equals_tier_0(self, out_THE: Tensor) -> None:
        tolerance = TOLERANCES[self.q_THE.dtype]
        torch.testing.assert_close(out_THE, self.by_tier_0(), rtol=tolerance, atol=tolerance)


def a_step(
    rows: list[tuple[int, int]],
    *,
    num_kv_heads: int = 1,
    group_size: int = 3,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
) -> Step:
    """Rows are (tokens computed now, tokens of context). Blocks lie in random order."""
    generator = torch.Generator().manual_seed(0)
    counts = [-(-context // block_size) for _, context in rows]
    ids = list(range(sum(counts) + 2))
    random.Random(0).shuffle(ids)
    tables = [[ids.pop() for _ in range(count)] for count in counts]
    width = max(counts)
    num_blocks, num_tokens = sum(counts) + 2, sum(now for now, _ in rows)
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    batch = AttentionBatch(
        query_lens=tuple(now for now, _ in rows),
        context_lens=tuple(context for _, context in rows),
        slots_T=torch.zeros(num_tokens, dtype=torch.int64, device=DEVICE),
        block_table_BM=torch.tensor([table + [0] * (width - len(table)) for table in tables]).to(DEVICE),
    )
    q_THE = torch.randn(num_tokens, num_kv_heads * group_size, head_dim, generator=generator).to(dtype)
    kv = empty_kv(shape, kv_dtype or dtype)
    every_slot = torch.arange(num_blocks * block_size, device=DEVICE)
    keys, values = (torch.randn(shape, generator=generator).flatten(0, 1).to(dtype).to(DEVICE) for _ in range(2))
    write_kv(kv, keys, values, every_slot)
    return Step(q_THE.to(DEVICE), kv, batch)


def empty_kv(shape: tuple[int, int, int, int], dtype: torch.dtype) -> LayerKV:
    """Return one layer's cache, zero-filled."""
    key, value = (torch.zeros(shape, dtype=dtype, device=DEVICE) for _ in range(2))
    if dtype != torch.int8:
        return LayerKV(key, value)
    return LayerKV(key, value, *(torch.zeros(shape[:3], device=DEVICE) for _ in range(2)))
