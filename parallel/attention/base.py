"""The seam between a model and its attention kernel.

T tokens in step, B rows in step, H query heads on this rank, K kv heads on this rank, E head dim,
N blocks in the pool, S block size, M most blocks of a row in this step.
"""

from dataclasses import dataclass
from typing import Protocol

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


@dataclass(frozen=True)
class LayerKV:
    """One layer's share of the paged KV cache on this rank."""

    key_NSKE: Tensor
    value_NSKE: Tensor


class AttentionBackend(Protocol):
    """Causal attention of a ragged batch over the paged cache."""

    def forward(
        self, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, kv: LayerKV, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """Write k and v into `kv` at `batch.slots_T` (mutates), then return attention out_THE.

        Token i of a row attends to the row's positions up to its own. q is already rotated and normed. Query heads are
        grouped: head h reads kv head h // (H / K).
        """
        ...


@dataclass(frozen=True)
class StepContext:
    """What a model's attention layers need of the step; passed explicitly through `forward`."""

    batch: AttentionBatch
    layers: tuple[LayerKV, ...]
    backend: AttentionBackend
