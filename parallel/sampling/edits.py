"""What single requests change in their own logits before a token is chosen: penalties, bias, forbidden tokens.

A row keeps sparse lists of (vocabulary row on this rank, value), so a step costs as much as the texts are long, not as
the vocabulary is wide. Order: repetition penalty, frequency and presence penalty, bias, then the mask of tokens that
may not come yet, so that a bias is exactly what the caller asked for and nothing lifts a mask.

S sampled rows in step, V vocabulary rows on this rank.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel.sampling.params import SamplingParams

_FIRST_CAPACITY = 64


class Penalties:
    """What each token of a row's text loses, kept up to date token by token. This rank's tokens only."""

    def __init__(
        self, params: SamplingParams, vocab: range, token_ids: NDArray[np.int64], num_prompt_tokens: int
    ) -> None:
        self.repetition = params.repetition_penalty
        self._presence = params.presence_penalty
        self._frequency = params.frequency_penalty
        self._vocab = vocab
        local, index_of_token = np.unique(_local(vocab, token_ids), return_inverse=True)
        self._size = len(local)
        self._columns = np.zeros(max(_FIRST_CAPACITY, 2 * self._size), np.int64)
        self._subtracted = np.zeros(len(self._columns), np.float32)
        self._columns[: self._size] = local
        num_prompt = len(_local(vocab, token_ids[:num_prompt_tokens]))
        counts = np.bincount(index_of_token[num_prompt:], minlength=self._size)
        self._subtracted[: self._size] = self._frequency * counts + self._presence * (counts > 0)
        self._counts: list[int] = counts.tolist()
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
            self._counts.append(0)
        self._counts[index] += 1
        self._subtracted[index] = self._frequency * self._counts[index] + self._presence

    @property
    def size(self) -> int:
        """How many different tokens the text has."""
        return self._size

    @property
    def columns(self) -> NDArray[np.int64]:
        """Vocabulary rows on this rank that occur in the row's text, each once."""
        return self._columns[: self._size]

    @property
    def subtracted(self) -> NDArray[np.float32]:
        """frequency_penalty * times generated + presence_penalty if generated at all, for each of `columns`.

        The formula of OpenAI's API reference; the prompt does not count.
        """
        return self._subtracted[: self._size]

    def _grow(self) -> None:
        self._size += 1
        if self._size > len(self._columns):
            self._columns = np.concatenate((self._columns, np.zeros_like(self._columns)))
            self._subtracted = np.concatenate((self._subtracted, np.zeros_like(self._subtracted)))


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
        self.penalties = Penalties(params, vocab, token_ids, num_prompt_tokens) if params.has_penalties else None
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
    biased_rows: NDArray[np.int64]
    biased_columns: NDArray[np.int64]
    bias: NDArray[np.float32]
    masked_rows: NDArray[np.int64]
    masked_columns: NDArray[np.int64]

    @classmethod
    def collect(cls, edits: list[tuple[int, int, RowEdits]]) -> "SparseEdits":
        """Build from (index among the sampled rows, tokens the row has, its edits)."""
        penalised = [(index, row.penalties) for index, _, row in edits if row.penalties is not None]
        masked = [(index, row.masked_columns) for index, length, row in edits if length < row.masked_below]
        return cls(
            penalised_rows=_repeat([index for index, _ in penalised], [row.size for _, row in penalised], np.int64),
            penalised_columns=_join([row.columns for _, row in penalised], np.int64),
            repetition=_repeat(
                [row.repetition for _, row in penalised], [row.size for _, row in penalised], np.float32
            ),
            subtracted=_join([row.subtracted for _, row in penalised], np.float32),
            biased_rows=_repeat(
                [index for index, _, _ in edits], [len(row.bias_columns) for _, _, row in edits], np.int64
            ),
            biased_columns=_join([row.bias_columns for _, _, row in edits], np.int64),
            bias=_join([row.bias_values for _, _, row in edits], np.float32),
            masked_rows=_repeat([index for index, _ in masked], [len(columns) for _, columns in masked], np.int64),
            masked_columns=_join([columns for _, columns in masked], np.int64),
        )


def _is_local(vocab: range, token_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    return (token_ids >= vocab.start) & (token_ids < vocab.stop)


def _local(vocab: range, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return token_ids[_is_local(vocab, token_ids)] - vocab.start


def _repeat(values: Sequence[float], counts: Sequence[int], dtype: type[np.generic]) -> NDArray:
    return np.repeat(np.array(values, dtype), np.array(counts, np.int64))


def _join(parts: list[NDArray], dtype: type[np.generic]) -> NDArray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)
