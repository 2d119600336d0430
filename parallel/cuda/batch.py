"""What the CUDA kernels are told of a step: an AttentionBatch whose lengths lie on the device as well.

T tokens in step, B rows in step, M most blocks of a row.

Kernels read lengths from device memory, so that a captured CUDA graph serves any lengths: whoever replays it writes the
next step's numbers into the same tensors. What decides which kernels are launched, and over which grids, is fixed.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from parallel.attention.base import AttentionBatch


@dataclass(frozen=True)
class CudaBatch(AttentionBatch):
    """The ragged shape of one step. A slot below 0 is written nowhere: the token is padding.

    Where it was made for a CUDA graph, `query_lens` and `context_lens` are empty: the host does not know them.
    """

    query_starts_B1: Tensor
    """int32, index of each row's first token, then the number of tokens. Equal neighbours are a row without tokens."""
    context_lens_B: Tensor
    """int32, as `context_lens`. 0 is a row of padding; its attention is zeros."""
    has_decode_rows: bool
    """Whether there may be rows that compute one token."""
    has_longer_rows: bool
    """Whether there may be rows that compute several."""

    @property
    def num_rows(self) -> int:
        """Rows in step, those of padding included."""
        return len(self.context_lens_B)

    @classmethod
    def of(cls, batch: AttentionBatch) -> "CudaBatch":
        """Return the batch with its lengths copied to the device; `batch` itself if it has them there."""
        if isinstance(batch, cls):
            return batch
        num_rows, device = len(batch.context_lens), batch.slots_T.device
        # One copy. Each part begins at a multiple of 16 bytes: kernels are compiled for pointers that do.
        starts_at = -(-num_rows // 4) * 4
        padding = [0] * (starts_at - num_rows)
        numbers = [*batch.context_lens, *padding, *accumulate(batch.query_lens, initial=0)]
        numbers_X = torch.tensor(numbers, dtype=torch.int32).to(device)
        return cls(
            query_lens=batch.query_lens,
            context_lens=batch.context_lens,
            slots_T=batch.slots_T,
            block_table_BM=batch.block_table_BM,
            query_starts_B1=numbers_X[starts_at:],
            context_lens_B=numbers_X[:num_rows],
            has_decode_rows=1 in batch.query_lens,
            has_longer_rows=any(num_tokens > 1 for num_tokens in batch.query_lens),
        )

    @classmethod
    def decoding(cls, slots_B: Tensor, block_table_BM: Tensor, context_lens_B: Tensor) -> "CudaBatch":
        """Return a step of one token a row, over tensors that the caller keeps and rewrites from step to step.

        For rows of padding write slot -1 and context length 0.
        """
        num_rows = len(context_lens_B)
        return cls(
            query_lens=(),
            context_lens=(),
            slots_T=slots_B,
            block_table_BM=block_table_BM,
            query_starts_B1=torch.arange(num_rows + 1, dtype=torch.int32, device=context_lens_B.device),
            context_lens_B=context_lens_B,
            has_decode_rows=True,
            has_longer_rows=False,
        )
