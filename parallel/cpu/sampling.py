"""Rows of logits by the C library: no sort of the vocabulary, no tensor of its size beside the logits.

S rows, V vocabulary rows on this rank, P rows with a temperature, K candidates.
"""

from ctypes import byref
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel.cpu import abi
from parallel.cpu.library import KernelLibrary
from parallel.cpu.threads import ThreadPool
from parallel.sampling.rows import SampleBatch
from parallel.sampling.sampler import Sampled, Sampler


class BestRows(NamedTuple):
    """Each row's most likely token."""

    logit_S: NDArray[np.float32]
    column_S: NDArray[np.int64]
    is_sound_S: NDArray[np.bool_]
    """False where some logit is NaN or infinite, or where no token is allowed at all."""


class CpuRowKernels:
    """The RowKernels of the CPU tier."""

    def __init__(self, library: KernelLibrary, threads: ThreadPool) -> None:
        self._calls = library.calls
        self._threads = threads

    def best(self, logits_SV: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's largest logit and where it first is."""
        best = self.best_rows(logits_SV)
        return torch.from_numpy(best.logit_S), torch.from_numpy(best.column_S)

    def best_rows(self, logits_SV: Tensor) -> "BestRows":
        """Return the same as arrays, and which rows are sound."""
        num_rows, num_columns = logits_SV.shape
        best = BestRows(np.empty(num_rows, np.float32), np.empty(num_rows, np.int64), np.empty(num_rows, np.bool_))
        self._calls.eg_best(
            self._threads.pointer,
            logits_SV.data_ptr(),
            num_rows,
            num_columns,
            best.logit_S.ctypes.data,
            best.column_S.ctypes.data,
            best.is_sound_S.ctypes.data,
        )
        return best

    def top(self, logits_SV: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return the largest logits of each row, and where they are."""
        num_rows, num_columns = logits_SV.shape
        top_SK = torch.empty((num_rows, width))
        index_SK = torch.empty((num_rows, width), dtype=torch.int64)
        self._calls.eg_top(
            self._threads.pointer,
            logits_SV.data_ptr(),
            num_rows,
            num_columns,
            width,
            top_SK.data_ptr(),
            index_SK.data_ptr(),
        )
        return top_SK, index_SK

    def draw(self, logits_SV: Tensor, best_logit_S: Tensor, batch: SampleBatch) -> Tensor:
        """Return one token of each row that draws."""
        token_ids_P = torch.empty(len(batch.random_P), dtype=torch.int64)
        draws = abi.Draws(
            num_draws=len(batch.random_P),
            rows=batch.random_P.ctypes.data,
            uniform=batch.uniform_P.ctypes.data,
            temperature=batch.temperature_P.ctypes.data,
            top_k=batch.top_k_P.ctypes.data,
            top_p=batch.top_p_P.ctypes.data,
            min_p=batch.min_p_P.ctypes.data,
        )
        best_S = best_logit_S.float()
        self._calls.eg_draw(
            self._threads.pointer,
            logits_SV.data_ptr(),
            logits_SV.shape[1],
            best_S.data_ptr(),
            byref(draws),
            token_ids_P.data_ptr(),
        )
        return token_ids_P


class GreedyInOneCall:
    """A StepSampler for a rank with the whole vocabulary: rows that all take their most likely token cost one C call.

    After a step's weights Python's own code and objects are out of the cache, and every line of it is slow.
    """

    def __init__(self, kernels: CpuRowKernels, sampler: Sampler) -> None:
        """`sampler` does all other steps."""
        self._kernels = kernels
        self._sampler = sampler

    def sample(self, logits_SV: Tensor, batch: SampleBatch) -> Sampled:
        """Return one token for each row; mutates `logits_SV` where it is edited."""
        if len(batch.random_P) or len(batch.logprobs_L) or batch.edits is not None:
            return self._sampler.sample(logits_SV, batch)
        best = self._kernels.best_rows(logits_SV)
        is_failed_S = ~best.is_sound_S
        best.column_S[is_failed_S] = 0
        return Sampled(best.column_S, is_failed_S, {})
