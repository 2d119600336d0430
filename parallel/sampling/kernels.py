"""What a tier may do faster than torch with rows of logits.

S rows, V vocabulary rows on this rank, P rows with a temperature, K candidates.
"""

from typing import Protocol

from torch import Tensor

from parallel.sampling.rows import SampleBatch


class RowKernels(Protocol):
    """Works on float32 logits_SV of this rank, contiguous, and changes nothing."""

    def best(self, logits_SV: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's largest logit, NaN if one is NaN, and the lowest index it has."""
        ...

    def top(self, logits_SV: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return logits_SK and indices of each row's `width` largest, best first, equals by index; 1 <= width <= V."""
        ...

    def draw(self, logits_SV: Tensor, best_logit_S: Tensor, batch: SampleBatch) -> Tensor:
        """Return token_ids_P where this rank has the whole vocabulary; a row that is not sound gets any token.

        The meaning is that of `filters` and, for rows without filters, of `ShardedVocabulary.draw`.
        """
        ...
