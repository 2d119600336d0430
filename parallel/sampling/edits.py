"""What single requests change in their own logits before a token is chosen: penalties, bias, forbidden tokens.

A row keeps sparse lists of (vocabulary row on this rank, value), so a step costs as much as the texts are long, not as
the vocabulary is wide. Order: repetition penalty, frequency and presence penalty, bias, then the mask of tokens that
may not come yet, so that a bias is exactly what the caller asked for and nothing lifts a mask.

S sampled rows in step, V vocabulary rows on this rank.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel.sampling.params import SamplingParams

_FIRST_CAPACITY = 64


class TokenCounts:
    """How often each token of a row was generated; tokens seen in the prompt only count 0. This rank's tokens only."""

    def __init__(self, vocab: range, token_ids: NDArray[np.int64], num_prompt_tokens: int) -> None:
        self._vocab = vocab
        local, first_seen = np.unique(_local(vocab, token_ids), return_inverse=True)
        self._size = len(local)
        self._columns = np.zeros(max(_FIRST_CAPACITY, 2 * self._size), np.int64)
        self._counts = np.zeros(len(self._columns), np.float32)
        self._columns[: self._size] = local
        num_prompt = len(_local(vocab, token_ids[:num_prompt_tokens]))
        np.add.at(self._counts, first_seen[num_prompt:], 1)
        self._index = {column: index for index, column in enumerate(local.tolist())}

    def add(self, token_id: int) -> None:
        """Count one generated token."""
        if token_id not in self._vocab:
            return
        column = token_id - self._vocab.start
        index = self._index.setdefault(column, self._size)
        if index == self._size:
            self._grow()
            self._columns[index] = column
        self._counts[index] += 1

    @property
    def columns(self) -> NDArray[np.int64]:
        """Vocabulary rows on this rank that occur in the row's text, each once."""
        return self._columns[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of `columns` was generated."""
        return self._counts[: self._size]

    def _grow(self) -> None:
        self._size += 1
        if self._size > len(self._columns):
            self._columns = np.concatenate((self._columns, np.zeros_like(self._columns)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))


class RowEdits:
    """The edits of one row over its life."""

    def __init__(
        self,
        params: SamplingParams,
        vocab: range,
        token_ids: NDArray[np.int64],
        num_prompt_tokens: int,
        eos_token_ids: Iterable[int],
    ) -> None:
        self.params = params
        self.counts = TokenCounts(vocab, token_ids, num_prompt_tokens) if params.has_penalties else None
        bias = sorted(params.logit_bias.items())
        bias_ids = np.array([token_id for token_id, _ in bias], np.int64)
        bias_values = np.array([value for _, value in bias], np.float32)
        self.bias_columns = _local(vocab, bias_ids)
        self.bias_values = bias_values[_is_local(vocab, bias_ids)]
        ending = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos_token_ids))
        self.masked_columns = _local(vocab, np.array(sorted(ending), np.int64))
        self.masked_below = num_prompt_tokens + params.min_tokens
        """Ending tokens are forbidden while the row has fewer tokens than this."""

    @staticmethod
    def is_needed(params: SamplingParams) -> bool:
        """Whether a row with these parameters ever changes its logits."""
        return params.has_penalties or bool(params.logit_bias) or params.min_tokens > 0


@dataclass(frozen=True)
class SparseEdits:
    """The edits of one step. Arrays of one group are parallel; a (row, column) occurs at most once in each group."""

    penalised_rows: NDArray[np.int64]
    """Index among the step's sampled rows, as in all `_rows`."""
    penalised_columns: NDArray[np.int64]
    repetition: NDArray[np.float32]
    subtracted: NDArray[np.float32]
    """frequency_penalty * count + presence_penalty * (count > 0), the formula of OpenAI's API reference."""
    biased_rows: NDArray[np.int64]
    biased_columns: NDArray[np.int64]
    bias: NDArray[np.float32]
    masked_rows: NDArray[np.int64]
    masked_columns: NDArray[np.int64]

    @classmethod
    def collect(cls, edits: list[tuple[int, int, RowEdits]]) -> "SparseEdits":
        """Build from (index among the sampled rows, tokens the row has, its edits)."""
        penalised = [(index, row.counts, row.params) for index, _, row in edits if row.counts is not None]
        masked = [(index, row.masked_columns) for index, length, row in edits if length < row.masked_below]
        return cls(
            penalised_rows=_repeat([(index, len(counts.columns)) for index, counts, _ in penalised]),
            penalised_columns=_join([counts.columns for _, counts, _ in penalised], np.int64),
            repetition=_join(
                [np.full(len(c.columns), p.repetition_penalty, np.float32) for _, c, p in penalised], np.float32
            ),
            subtracted=_join(
                [p.frequency_penalty * c.counts + p.presence_penalty * (c.counts > 0) for _, c, p in penalised],
                np.float32,
            ),
            biased_rows=_repeat([(index, len(row.bias_columns)) for index, _, row in edits]),
            biased_columns=_join([row.bias_columns for _, _, row in edits], np.int64),
            bias=_join([row.bias_values for _, _, row in edits], np.float32),
            masked_rows=_repeat([(index, len(columns)) for index, columns in masked]),
            masked_columns=_join([columns for _, columns in masked], np.int64),
        )


def _is_local(vocab: range, token_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    return (token_ids >= vocab.start) & (token_ids < vocab.stop)


def _local(vocab: range, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return token_ids[_is_local(vocab, token_ids)] - vocab.start


def _repeat(lengths: list[tuple[int, int]]) -> NDArray[np.int64]:
    return np.repeat(
        np.array([index for index, _ in lengths], np.int64), np.array([count for _, count in lengths], np.int64)
    )


def _join(parts: list[NDArray], dtype: type[np.generic]) -> NDArray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)
