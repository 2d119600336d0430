"""Choosing the next token of every row from logits whose vocabulary is split over the ranks. Tier 0: plain torch.

Order: logprobs are taken from the model's own logits; then penalties, bias, masks (`edits`); then greedy rows take the
most likely token, the others divide by temperature, filter (`filters`) and draw by inverse CDF with their own uniform
number. Every rank computes the same answer. A row with a logit that is not finite fails alone.

S sampled rows in step, P rows with a temperature, F rows with filters among them, L rows with logprobs, V vocabulary
rows on this rank.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel.groups.base import TPGroup
from parallel.plan import TokenLogprobs
from parallel.sampling.blocks import first_over
from parallel.sampling.edits import SparseEdits
from parallel.sampling.filters import Filters, nucleus
from parallel.sampling.kernels import RowKernels
from parallel.sampling.rows import SampleBatch
from parallel.sampling.vocabulary import Best, ShardedVocabulary

CANDIDATE_WIDTHS = (128, 1024)
"""Candidates of each rank to try before the whole vocabulary. 128 of 49152 cost 0.13 ms a row on a CPU core, 1024 cost
0.5 ms, a full sort 4.4 ms; a nucleus is rarely wider than the first."""


class Sampled(NamedTuple):
    """What a step chose."""

    token_ids_S: NDArray[np.int64]
    """0 for a row that failed."""
    is_failed_S: NDArray[np.bool_]
    logprobs: dict[int, TokenLogprobs]
    """By index among the sampled rows; absent for rows that failed."""

    @classmethod
    def nothing(cls) -> "Sampled":
        """Return what a step without sampled rows chose."""
        return cls(np.empty(0, np.int64), np.empty(0, np.bool_), {})


class Sampler:
    """The sampler of one rank. Construction and `sample` are collectives."""

    def __init__(self, group: TPGroup, vocab: range, device: torch.device, kernels: RowKernels | None = None) -> None:
        self._vocabulary = ShardedVocabulary(group, vocab, device, kernels)
        self._drawing_kernels = kernels if group.world_size == 1 else None
        self._device = device

    def sample(self, logits_SV: Tensor, batch: SampleBatch) -> Sampled:
        """Return one token for each row; mutates `logits_SV` (float32)."""
        wants_logprobs = len(batch.logprobs_L) > 0
        raw_LV = logits_SV[self._put(batch.logprobs_L)] if wants_logprobs else None
        if batch.edits is not None:
            self._apply(batch.edits, logits_SV)
        best = self._vocabulary.best(logits_SV)
        token_ids_S = best.token_id_S
        if len(batch.random_P):
            token_ids_S[self._put(batch.random_P)] = self._draw(logits_SV, best, batch)
        is_sound_S = best.is_sound
        token_ids_S = token_ids_S.masked_fill(~is_sound_S, 0)
        is_failed = ~is_sound_S.cpu().numpy()
        logprobs = {} if raw_LV is None else self._logprobs(raw_LV, token_ids_S, is_failed, batch)
        return Sampled(token_ids_S.cpu().numpy(), is_failed, logprobs)

    def _apply(self, edits: SparseEdits, logits_SV: Tensor) -> None:
        if len(edits.penalised_rows):
            where = (self._put(edits.penalised_rows), self._put(edits.penalised_columns))
            logits_X, repetition_X = logits_SV[where], self._put(edits.repetition)
            repeated_X = torch.where(logits_X > 0, logits_X / repetition_X, logits_X * repetition_X)
            logits_SV[where] = repeated_X - self._put(edits.subtracted)
        if len(edits.biased_rows):
            logits_SV[self._put(edits.biased_rows), self._put(edits.biased_columns)] += self._put(edits.bias)
        if len(edits.masked_rows):
            logits_SV[self._put(edits.masked_rows), self._put(edits.masked_columns)] = -torch.inf

    def _draw(self, logits_SV: Tensor, best: Best, batch: SampleBatch) -> Tensor:
        """Return token_ids_P: by the whole distribution, or by what the filters leave of it."""
        if self._drawing_kernels is not None:
            return self._drawing_kernels.draw(logits_SV, best.logit_S, batch)
        rows_P = self._put(batch.random_P)
        logits_PV = logits_SV if len(rows_P) == len(logits_SV) else logits_SV[rows_P]
        uniform_P = self._put(batch.uniform_P)
        filters = Filters(
            self._put(batch.temperature_P), self._put(batch.top_k_P), self._put(batch.top_p_P), self._put(batch.min_p_P)
        )
        weights = self._vocabulary.weights(logits_PV, best.logit_S[rows_P], filters.temperature_F)
        # Decided on the host's copy, which every rank has: no device synchronisation.
        is_filtered_P = _is_filtered(batch)
        token_ids_P = torch.zeros_like(rows_P) if is_filtered_P.all() else self._vocabulary.draw(weights, uniform_P)
        if is_filtered_P.any():
            rows_F = self._put(np.flatnonzero(is_filtered_P))
            filtered = (logits_PV[rows_F], weights.mass[rows_F], filters.rows(rows_F), uniform_P[rows_F])
            token_ids_P[rows_F] = self._draw_filtered(*filtered)
        return token_ids_P

    def _draw_filtered(self, logits_FV: Tensor, mass_F: Tensor, filters: Filters, uniform_F: Tensor) -> Tensor:
        token_ids_F = torch.zeros_like(filters.top_k_F)
        # Rows that failed have no nucleus; they are not looked for.
        pending = torch.isfinite(mass_F).nonzero()[:, 0]
        for width in (*CANDIDATE_WIDTHS, self._vocabulary.max_width):
            if not len(pending):
                break
            candidates = self._vocabulary.candidates(logits_FV[pending], width)
            kept = nucleus(candidates, mass_F[pending], filters.rows(pending))
            choice, _ = first_over(kept.weights_FK, uniform_F[pending] * kept.weights_FK.sum(1))
            token_ids_F[pending] = candidates.token_ids_FK.gather(1, choice[:, None])[:, 0]
            pending = pending[~kept.is_decided_F]
        return token_ids_F

    def _logprobs(
        self, raw_LV: Tensor, token_ids_S: Tensor, is_failed_S: NDArray[np.bool_], batch: SampleBatch
    ) -> dict[int, TokenLogprobs]:
        """Return natural-log probabilities over the whole vocabulary, by index among the sampled rows."""
        normaliser_L = self._vocabulary.log_sum_exp(raw_LV)
        chosen_L = self._vocabulary.logits_of(raw_LV, token_ids_S[self._put(batch.logprobs_L)]) - normaliser_L
        top = self._vocabulary.candidates(raw_LV, max(int(batch.num_logprobs_L.max()), 1))
        top_LK = top.logits_FK - normaliser_L[:, None]
        rows = zip(
            batch.logprobs_L.tolist(),
            batch.num_logprobs_L.tolist(),
            chosen_L.tolist(),
            top.token_ids_FK.tolist(),
            top_LK.tolist(),
            strict=True,
        )
        return {
            index: TokenLogprobs(chosen, top_ids[:num], top_logprobs[:num])
            for index, num, chosen, top_ids, top_logprobs in rows
            if not is_failed_S[index]
        }

    def _put(self, array: NDArray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _is_filtered(batch: SampleBatch) -> NDArray[np.bool_]:
    return (batch.top_k_P < np.iinfo(np.int64).max) | (batch.top_p_P < 1) | (batch.min_p_P > 0)
