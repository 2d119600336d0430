"""What attention is given: the ragged shape of a step and a layer's paged keys and values.

T tokens in step, B rows in step, K kv heads on this rank, E head dim, N blocks in the pool, S block size, M most blocks
of a row in this step.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionBatch:
    """The ragged shape of one step. Tokens of a row are adjacent; rows are in chunk order. Valid for one step."""

    query_lens: tuple[int, ...]
    """Tokens each row computes now."""
    context_lens: tuple[int, ...]
    """Tokens of each row whose KV is in the cache once this step has written its own (computed before + now)."""
    slots_T: Tensor
    """int64, where each token's KV is written: block_id * S + offset."""
    block_table_BM: Tensor
    """int64, block ids of each row, padded with 0."""


class KVLayout(NamedTuple):
    """How a tier keeps one layer's keys and values: the shape of what belongs to one block."""

    key: tuple[int, ...]
    value: tuple[int, ...]
    scale: tuple[int, ...] | None
    """Of the float32 scales, one a token and kv head; None if the dtype needs none."""
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Memory that one block takes in one layer."""
        codes = (math.prod(self.key) + math.prod(self.value)) * self.dtype.itemsize
        return codes + (0 if self.scale is None else 2 * math.prod(self.scale) * torch.float32.itemsize)


@dataclass(frozen=True)
class LayerKV:
    """One layer's share of the paged KV cache on this rank, in the layout of the tier that reads it.

    The torch and CUDA tiers keep keys and values as NSKE and scales as NSK; the CPU tier's order is in eagle.h.
    """

    key: Tensor
    value: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None


@dataclass(frozen=True)
class StepContext:
    """What a model's attention layers need of the step; passed explicitly through `forward`."""

    batch: AttentionBatch
    layers: tuple[LayerKV, ...]
