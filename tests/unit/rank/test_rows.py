"""The row table against a model made of lists, over random plans."""

import numpy as np
import pytest

from parallel.plan import BlocksAppended, Chunk, RowStart, pack_integers
from parallel.rank.rows import RowTable, StepInputs
from parallel.sampling.params import SamplingParams

BLOCK_SIZE = 4
MAX_ROWS = 5
MAX_MODEL_LEN = 200
SAMPLING = SamplingParams(max_tokens=1, seed=0)


class ListRow:
    def __init__(self, start: RowStart) -> None:
        self.tokens = list(start.token_ids)
        self.num_computed = start.num_computed_tokens
        self.blocks = list(start.block_ids)


class ListTable:
    """What RowTable does, one token at a time."""

    def __init__(self) -> None:
        self.rows: dict[int, ListRow] = {}

    def check(self, chunks: list[Chunk], inputs: StepInputs) -> list[int]:
        """Compare and advance; return the rows that sample."""
        tokens, positions, slots, sampled, last = [], [], [], [], []
        for place, (row_id, num_tokens) in enumerate((chunk.row, chunk.num_tokens) for chunk in chunks):
            row = self.rows[row_id]
            for position in range(row.num_computed, row.num_computed + num_tokens):
                tokens.append(row.tokens[position])
                positions.append(position)
                slots.append(row.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
            row.num_computed += num_tokens
            assert inputs.context_lens_B[place] == row.num_computed
            needed = -(-row.num_computed // BLOCK_SIZE)
            assert inputs.block_table_BM[place, :needed].tolist() == row.blocks[:needed]
            if row.num_computed == len(row.tokens):
                sampled.append(row_id)
                last.append(len(tokens) - 1)
        assert inputs.query_lens_B.tolist() == [chunk.num_tokens for chunk in chunks]
        assert inputs.token_ids_T.tolist() == tokens
        assert inputs.positions_T.tolist() == positions
        assert inputs.slots_T.tolist() == slots
        assert inputs.sampled_rows_S.tolist() == sampled
        assert inputs.last_token_S.tolist() == last
        assert inputs.num_tokens_S.tolist() == [len(self.rows[row].tokens) for row in sampled]
        return sampled


@pytest.mark.parametrize("seed", range(6))
def test_random_plans_give_what_lists_give(seed: int):
    rng = np.random.default_rng(seed)
    table, lists = RowTable(MAX_ROWS, MAX_MODEL_LEN, BLOCK_SIZE), ListTable()
    blocks = iter(rng.permutation(100_000).tolist())
    previous: list[int] = []
    for _ in range(250):
        for row in list(lists.rows):
            if rng.random() < 0.03 or len(lists.rows[row].tokens) >= MAX_MODEL_LEN:
                del lists.rows[row]
        for row in range(MAX_ROWS):
            if row not in lists.rows and rng.random() < 0.2:
                start = random_start(rng, row, blocks)
                table.start(start)
                lists.rows[row] = ListRow(start)
        chunks = random_chunks(rng, lists.rows, previous)
        for chunk in chunks:
            row = lists.rows[chunk.row]
            missing = -(-(row.num_computed + chunk.num_tokens) // BLOCK_SIZE) - len(row.blocks)
            if missing > 0:
                appended = [next(blocks) for _ in range(missing + int(rng.integers(0, 2)))]
                table.append_blocks(BlocksAppended(chunk.row, appended))
                row.blocks += appended
        is_repeated = [chunk.row for chunk in chunks] == previous and all(chunk.num_tokens == 1 for chunk in chunks)
        decodes, rest = split(chunks, int(rng.integers(0, 4)))
        inputs = table.step(None) if is_repeated else table.step(rest, decodes)
        sampled = lists.check(chunks, inputs)
        new_tokens = rng.integers(0, 1000, len(sampled))
        table.append_tokens(np.array(sampled, np.int64), new_tokens)
        for row, token in zip(sampled, new_tokens.tolist(), strict=True):
            lists.rows[row].tokens.append(token)
            assert table.tokens_of(row).tolist() == lists.rows[row].tokens
        previous = [chunk.row for chunk in chunks]


def split(chunks: list[Chunk], most: int) -> tuple[bytes, list[Chunk]]:
    """Return up to `most` leading chunks of one token as a plan's decodes, and the others."""
    count = 0
    while count < min(most, len(chunks)) and chunks[count].num_tokens == 1:
        count += 1
    return pack_integers([chunk.row for chunk in chunks[:count]]), chunks[count:]


def random_start(rng: np.random.Generator, row: int, blocks) -> RowStart:
    tokens = rng.integers(0, 1000, rng.integers(1, 60)).tolist()
    num_computed = int(rng.integers(0, len(tokens))) // BLOCK_SIZE * BLOCK_SIZE
    block_ids = [next(blocks) for _ in range(num_computed // BLOCK_SIZE + int(rng.integers(0, 3)))]
    return RowStart(row, tokens, len(tokens), num_computed, block_ids, SAMPLING)


def random_chunks(rng: np.random.Generator, rows: dict[int, ListRow], previous: list[int]) -> list[Chunk]:
    """Return often the same rows as before, so that steps repeat, and sometimes others in another order."""
    chosen = previous if rng.random() < 0.7 and all(row in rows for row in previous) else list(rows)
    if chosen is not previous:
        rng.shuffle(chosen)
        chosen = chosen[: rng.integers(0, len(chosen) + 1)]
    return [Chunk(row, int(rng.integers(1, len(rows[row].tokens) - rows[row].num_computed + 1))) for row in chosen]


def test_a_steady_decode_step_reuses_the_gathered_block_table():
    # Turns red if block tables are rebuilt every step.
    table = RowTable(MAX_ROWS, MAX_MODEL_LEN, BLOCK_SIZE)
    for row in range(3):
        table.start(RowStart(row, [1, 2], 2, 0, [row], SAMPLING))
    first = table.step([Chunk(row, 2) for row in range(3)]).block_table_BM
    rows = np.arange(3)
    for step in range(30):
        table.append_tokens(rows, rows)
        if (2 + step) % BLOCK_SIZE == 0:
            for row in range(3):
                table.append_blocks(BlocksAppended(row, [100 * row + step]))
        latest = table.step(None).block_table_BM
        assert np.shares_memory(first, latest)


def test_a_new_request_in_a_row_does_not_see_the_old_ones_blocks():
    table = RowTable(MAX_ROWS, MAX_MODEL_LEN, BLOCK_SIZE)
    table.start(RowStart(0, list(range(20)), 20, 0, [7, 8, 9, 10, 11], SAMPLING))
    table.start(RowStart(1, list(range(20)), 20, 0, [1, 2, 3, 4, 5], SAMPLING))
    table.step([Chunk(0, 20), Chunk(1, 20)])
    table.start(RowStart(0, [1], 1, 0, [3], SAMPLING))
    table.append_tokens(np.array([1]), np.array([0]))
    table.append_blocks(BlocksAppended(1, [6]))
    assert table.step(None).block_table_BM.tolist() == [[3, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(
    "chunks", [[Chunk(0, 3)], [Chunk(0, 0)], [Chunk(0, 1), Chunk(0, 1)]], ids=["past the end", "empty", "twice"]
)
def test_a_plan_that_breaks_the_rules_is_refused(chunks: list[Chunk]):
    table = RowTable(MAX_ROWS, MAX_MODEL_LEN, BLOCK_SIZE)
    table.start(RowStart(0, [1, 2], 2, 0, [0], SAMPLING))
    with pytest.raises(AssertionError):
        table.step(chunks)


def test_a_block_table_that_is_too_short_is_refused():
    table = RowTable(MAX_ROWS, MAX_MODEL_LEN, BLOCK_SIZE)
    table.start(RowStart(0, list(range(9)), 9, 0, [0, 1], SAMPLING))
    with pytest.raises(AssertionError, match="too few blocks"):
        table.step([Chunk(0, 9)])
