"""Sampling state of every row of a rank: fixed-capacity arrays for what all rows have, objects for what few rows ask.

S sampled rows in step.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel.sampling.edits import RowEdits, SparseEdits
from parallel.sampling.params import SamplingParams
from parallel.sampling.random import uniforms

NO_TOP_K = np.iinfo(np.int64).max
"""top_k of a row that has none: every vocabulary is smaller."""
_NOTHING = np.empty(0, np.float64)
MIN_TEMPERATURE = 1e-5
"""Below it a division overflows float32; a row that cold takes its most likely token all the same."""


@dataclass(frozen=True)
class SampleBatch:
    """How the rows of one step choose their tokens. Index arrays point into the step's sampled rows."""

    random_P: NDArray[np.int64]
    """Rows with a temperature; the arrays ending in _P follow it. The others are greedy."""
    uniform_P: NDArray[np.float64]
    temperature_P: NDArray[np.float32]
    top_k_P: NDArray[np.int64]
    top_p_P: NDArray[np.float64]
    min_p_P: NDArray[np.float64]
    logprobs_L: NDArray[np.int64]
    """Rows that want logprobs."""
    num_logprobs_L: NDArray[np.int64]
    edits: SparseEdits | None


class SamplingRows:
    """One entry a row; a row is started before it is read."""

    def __init__(self, max_rows: int, vocab: range, eos_token_ids: Iterable[int]) -> None:
        self._vocab = vocab
        self._eos_token_ids = tuple(eos_token_ids)
        self._is_random = np.zeros(max_rows, np.bool_)
        self._wants_logprobs = np.zeros(max_rows, np.bool_)
        self._num_logprobs = np.zeros(max_rows, np.int64)
        self._seed = np.zeros(max_rows, np.uint64)
        self._temperature = np.ones(max_rows, np.float32)
        self._top_k = np.full(max_rows, NO_TOP_K, np.int64)
        self._top_p = np.ones(max_rows, np.float64)
        self._min_p = np.zeros(max_rows, np.float64)
        self._edits: dict[int, RowEdits] = {}

    def start(self, row: int, params: SamplingParams, token_ids: NDArray[np.int64], num_prompt_tokens: int) -> None:
        """Give the row to a request that has `token_ids` already."""
        self._is_random[row] = not params.is_greedy
        self._wants_logprobs[row] = params.logprobs is not None
        self._num_logprobs[row] = params.logprobs or 0
        self._seed[row] = params.seed
        self._temperature[row] = max(params.temperature, MIN_TEMPERATURE)
        self._top_k[row] = NO_TOP_K if params.top_k is None else params.top_k
        self._top_p[row] = params.top_p
        self._min_p[row] = params.min_p
        self._edits.pop(row, None)
        if RowEdits.is_needed(params):
            self._edits[row] = RowEdits(params, self._vocab, token_ids, num_prompt_tokens, self._eos_token_ids)

    @property
    def needs_every_token(self) -> bool:
        """Whether a row's next choice depends on tokens it was given before, in other ways than through the model."""
        return bool(self._edits)

    def free(self, row: int) -> None:
        """Forget the row's request."""
        self._edits.pop(row, None)

    def append(self, rows_S: NDArray[np.int64], token_ids_S: NDArray[np.int64]) -> None:
        """Count one generated token in each row that penalises repetition."""
        if not self._edits:
            return
        for row, token_id in zip(rows_S.tolist(), token_ids_S.tolist(), strict=True):
            edits = self._edits.get(row)
            if edits is not None and edits.penalties is not None:
                edits.penalties.add(token_id)

    def select(self, rows_S: NDArray[np.int64], num_tokens_S: NDArray[np.int64]) -> SampleBatch:
        """Return how `rows_S` choose, given how many tokens each has: the position of the token to be chosen."""
        random_P = np.flatnonzero(self._is_random[rows_S])
        logprobs_L = np.flatnonzero(self._wants_logprobs[rows_S])
        rows_P = rows_S[random_P]
        return SampleBatch(
            random_P=random_P,
            uniform_P=uniforms(self._seed[rows_P], num_tokens_S[random_P]) if len(random_P) else _NOTHING,
            temperature_P=self._temperature[rows_P],
            top_k_P=self._top_k[rows_P],
            top_p_P=self._top_p[rows_P],
            min_p_P=self._min_p[rows_P],
            logprobs_L=logprobs_L,
            num_logprobs_L=self._num_logprobs[rows_S[logprobs_L]],
            edits=self._select_edits(rows_S, num_tokens_S) if self._edits else None,
        )

    def _select_edits(self, rows_S: NDArray[np.int64], num_tokens_S: NDArray[np.int64]) -> SparseEdits | None:
        pairs = zip(rows_S.tolist(), num_tokens_S.tolist(), strict=True)
        edits = [(index, length, self._edits[row]) for index, (row, length) in enumerate(pairs) if row in self._edits]
        return SparseEdits.collect(edits) if edits else None
