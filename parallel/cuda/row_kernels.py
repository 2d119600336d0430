"""The CUDA tier's part of the sampler that asks the host (`sampling/sampler.py`); graphs hold that of `cuda/sampler`.

S rows, V vocabulary rows on this rank, P rows with a temperature, K candidates.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel.cuda.choose import RowSampling, choose, join_chunks, read_chunks
from parallel.cuda.filtered import draw_filtered
from parallel.sampling.rows import NO_TOP_K, SampleBatch


class CudaRowKernels:
    """RowKernels of an NVIDIA GPU."""

    def best(self, logits_SV: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's largest logit, NaN if one is NaN or +inf, and the lowest index it has."""
        joined = join_chunks(read_chunks(logits_SV, None), None)
        return torch.where(joined.logit_S < torch.inf, joined.logit_S, torch.nan), joined.index_S

    def top(self, logits_SV: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return logits_SK and indices of each row's `width` largest, best first, equals by index.

        Which of several equals at the end are among them is arbitrary.
        """
        logits_SK, index_SK = logits_SV.topk(width, dim=1)
        index_SK, order_SK = index_SK.sort(dim=1)
        logits_SK, order_SK = logits_SK.gather(1, order_SK).sort(dim=1, descending=True, stable=True)
        return logits_SK, index_SK.gather(1, order_SK)

    def draw(self, logits_SV: Tensor, best_logit_S: Tensor, batch: SampleBatch) -> Tensor:
        """Return token_ids_P where this rank has the whole vocabulary; a row that is not sound gets any token."""
        rows_P = _put(batch.random_P, logits_SV.device)
        logits_PV = logits_SV if len(rows_P) == len(logits_SV) else logits_SV[rows_P]
        settings = (batch.temperature_P, batch.uniform_P, batch.top_k_P, batch.top_p_P, batch.min_p_P)
        rows = RowSampling(*(_put(values, logits_SV.device) for values in settings))
        chosen = choose(logits_PV, rows)
        if (batch.top_k_P < NO_TOP_K).any() or (batch.top_p_P < 1).any() or (batch.min_p_P > 0).any():
            draw_filtered(logits_PV, chosen.logit_S, rows, chosen.index_S)
        return chosen.index_S


def _put(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
