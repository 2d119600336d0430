"""The rows of a rank: which tokens each running request has, how many are computed, which KV blocks it reads.

Fixed-capacity numpy arrays, one row a running request, changed only where a plan says so. What a step gives the model
is gathered from them; the gathered block table is kept from step to step while the same rows run, so a steady decode
step touches one number a row and the few blocks that were appended. Untouched capacity costs address space, not memory.

R rows, B rows in step, T tokens in step, S sampled rows in step, M most blocks of a row in this step.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parallel.plan import BlocksAppended, Chunk, RowStart, unpack_integers

Ints = NDArray[np.int64]

_OVERRUN = 2
"""Tokens a row may have beyond max_model_len: plans under way when the leader learns that the row is full."""
_NONE = np.empty(0, np.int64)
_SPARE_BLOCKS = 16
"""Columns gathered beyond what a step needs, so that rows can grow for a while before they are gathered again."""


@dataclass(frozen=True)
class StepInputs:
    """One step as the model wants it. Arrays may be views of the table: valid until the next `apply`."""

    token_ids_T: Ints
    positions_T: Ints
    slots_T: Ints
    block_table_BM: Ints
    query_lens_B: Ints
    context_lens_B: Ints
    last_token_S: Ints
    """Index into T of the last token of each chunk that reaches the end of its row."""
    sampled_rows_S: Ints
    num_tokens_S: Ints
    """Tokens each of those rows has: the position of the one to be sampled."""
    rows_B: Ints
    unknown_T: Ints
    """Index into T of tokens that a step under way is still sampling; their ids are 0 here, the device has them."""
    unknown_rows: Ints
    """The row of each of those tokens."""


class ExpectedTokens(NamedTuple):
    """Places for tokens that a step will have sampled."""

    rows_S: Ints
    positions_S: Ints
    lives_S: Ints
    """Which request of its row each is for: a row may be given away before the token is there."""


def max_blocks_of_row(max_model_len: int, block_size: int) -> int:
    """Return how many blocks the longest row ever has."""
    return -(-(max_model_len + _OVERRUN) // block_size)


class RowTable:
    """Follows plans. A plan that breaks the rules is a bug of the leader and fails an assertion."""

    def __init__(self, max_rows: int, max_model_len: int, block_size: int) -> None:
        max_tokens = max_model_len + _OVERRUN
        self.block_size = block_size
        self._tokens = np.zeros((max_rows, max_tokens), np.int64)
        self._num_tokens = np.zeros(max_rows, np.int64)
        self._num_computed = np.zeros(max_rows, np.int64)
        num_columns = max_blocks_of_row(max_model_len, block_size) + _SPARE_BLOCKS
        self._blocks = np.zeros((max_rows, num_columns), np.int64)
        self._num_blocks = [0] * max_rows
        self._life = np.zeros(max_rows, np.int64)
        self._num_unknown = np.zeros(max_rows, np.int64)
        self._has_unknown = False
        # Of the latest plan, for one that repeats its rows.
        self._rows_B = np.empty(0, np.int64)
        self._place_of_row: dict[int, int] = {}
        self._gathered: Ints | None = None

    def tokens_of(self, row: int) -> Ints:
        """Return a view of the row's tokens, prompt first."""
        return self._tokens[row, : self._num_tokens[row]]

    def start(self, start: RowStart) -> None:
        """Give a row to a request."""
        row, num_tokens = start.row, len(start.token_ids)
        assert 0 <= start.num_computed_tokens < num_tokens <= self._tokens.shape[1], "the row's tokens do not fit"
        self._tokens[row, :num_tokens] = start.token_ids
        self._num_tokens[row] = num_tokens
        self._num_computed[row] = start.num_computed_tokens
        self._life[row] += 1
        self._num_unknown[row] = 0
        # The former request's blocks: the table is padded with 0.
        self._blocks[row, : self._num_blocks[row]] = 0
        self._num_blocks[row] = 0
        self._append_blocks(row, start.block_ids)
        if row in self._place_of_row:
            self._gathered = None

    def append_blocks(self, appended: BlocksAppended) -> None:
        """Let a row's block table grow at its end."""
        first = self._num_blocks[appended.row]
        self._append_blocks(appended.row, appended.block_ids)
        place = self._place_of_row.get(appended.row)
        if place is None or self._gathered is None:
            return
        stop = first + len(appended.block_ids)
        if stop > self._gathered.shape[1]:
            self._gathered = None
        else:
            self._gathered[place, first:stop] = appended.block_ids

    def step(self, chunks: list[Chunk] | None, decodes: bytes = b"") -> StepInputs:
        """Return the inputs of a plan's decodes and chunks, and count their tokens as computed."""
        if chunks is not None:
            self._use_rows(np.append(unpack_integers(decodes), [chunk.row for chunk in chunks]).astype(np.int64))
        rows_B = self._rows_B
        query_lens_B = np.ones(len(rows_B), np.int64)
        if chunks:
            query_lens_B[-len(chunks) :] = [chunk.num_tokens for chunk in chunks]
        computed_B = self._num_computed[rows_B]
        context_lens_B = computed_B + query_lens_B
        num_tokens_B = self._num_tokens[rows_B]
        assert (query_lens_B > 0).all() and (context_lens_B <= num_tokens_B).all(), "a chunk passes its row's end"
        self._num_computed[rows_B] = context_lens_B
        rows_T, positions_T = _spread(rows_B, computed_B, query_lens_B)
        block_T, offset_T = np.divmod(positions_T, self.block_size)
        is_sampled_B = context_lens_B == num_tokens_B
        unknown_T = self._unknown(rows_T, positions_T)
        return StepInputs(
            token_ids_T=self._tokens[rows_T, positions_T],
            positions_T=positions_T,
            slots_T=self._blocks[rows_T, block_T] * self.block_size + offset_T,
            block_table_BM=self._block_table(context_lens_B),
            query_lens_B=query_lens_B,
            context_lens_B=context_lens_B,
            last_token_S=(query_lens_B.cumsum() - 1)[is_sampled_B],
            sampled_rows_S=rows_B[is_sampled_B],
            num_tokens_S=num_tokens_B[is_sampled_B],
            rows_B=rows_B,
            unknown_T=unknown_T,
            unknown_rows=rows_T[unknown_T],
        )

    def expect_tokens(self, rows_S: Ints) -> ExpectedTokens:
        """Let each row be one token longer; which token, `fill` will say."""
        positions_S = self._num_tokens[rows_S]
        self._tokens[rows_S, positions_S] = 0
        self._num_tokens[rows_S] += 1
        self._num_unknown[rows_S] += 1
        self._has_unknown = True
        return ExpectedTokens(rows_S, positions_S, self._life[rows_S])

    def fill(self, expected: ExpectedTokens, token_ids_S: Ints) -> NDArray[np.bool_]:
        """Write the tokens of the oldest step that expects some; return which are for requests that have their row yet.

        The other tokens are dropped.
        """
        is_alive_S = self._life[expected.rows_S] == expected.lives_S
        rows = expected.rows_S[is_alive_S]
        self._tokens[rows, expected.positions_S[is_alive_S]] = token_ids_S[is_alive_S]
        self._num_unknown[rows] -= 1
        self._has_unknown = bool(self._num_unknown.any())
        return is_alive_S

    def append_tokens(self, rows_S: Ints, token_ids_S: Ints) -> None:
        """Append one sampled token to each row."""
        self._tokens[rows_S, self._num_tokens[rows_S]] = token_ids_S
        self._num_tokens[rows_S] += 1

    def _append_blocks(self, row: int, block_ids: list[int]) -> None:
        first = self._num_blocks[row]
        stop = first + len(block_ids)
        assert stop <= self._blocks.shape[1], "more blocks than the longest row needs"
        self._blocks[row, first:stop] = block_ids
        self._num_blocks[row] = stop

    def _unknown(self, rows_T: Ints, positions_T: Ints) -> Ints:
        if not self._has_unknown:
            return _NONE
        return np.flatnonzero(positions_T >= (self._num_tokens - self._num_unknown)[rows_T])

    def _use_rows(self, rows_B: Ints) -> None:
        if np.array_equal(rows_B, self._rows_B):
            return
        self._rows_B = rows_B
        self._place_of_row = {row: place for place, row in enumerate(rows_B.tolist())}
        assert len(self._place_of_row) == len(rows_B), "a row has two chunks in one step"
        self._gathered = None

    def _block_table(self, context_lens_B: Ints) -> Ints:
        needed = -(-int(context_lens_B.max(initial=0)) // self.block_size)
        if self._gathered is None or needed > self._gathered.shape[1]:
            num_blocks_B = np.array([self._num_blocks[row] for row in self._rows_B.tolist()], np.int64)
            assert (num_blocks_B * self.block_size >= context_lens_B).all(), "too few blocks"
            self._gathered = self._blocks[self._rows_B, : needed + _SPARE_BLOCKS]
        return self._gathered[:, :needed]


def _spread(rows_B: Ints, first_B: Ints, lens_B: Ints) -> tuple[Ints, Ints]:
    """Return the row and the position of every token, given each row's first position and number of tokens."""
    num_tokens = int(lens_B.sum())
    if num_tokens == len(rows_B):
        return rows_B, first_B
    # Within a row positions count up by one, so what is constant is position - index.
    shift_B = first_B - (lens_B.cumsum() - lens_B)
    return np.repeat(rows_B, lens_B), np.repeat(shift_B, lens_B) + np.arange(num_tokens)
