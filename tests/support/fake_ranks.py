"""A RankPool without processes or tensors that checks every plan as strictly as a real KV cache would suffer from it.

Each KV slot remembers which prefix it was written for, so a wrong prefix-cache hit, a block given to two requests, or a
block table that is too short is an AssertionError at the step that does it, not a wrong token later.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from core.errors import ErrorInfo, RankDied, ReplicaFailed
from core.progress import Progress
from parallel.plan import Chunk, RowStart, RowToken, SampledTokens, StepPlan, StepResult, unpack_integers
from parallel.rank.messages import Joined, Load, Loaded, RankPace

MAX_PLANS_UNDER_WAY = 2


def prefix_hash(previous: int, token_id: int) -> int:
    """Return the hash of a prefix one token longer; the hash of the empty prefix is 0."""
    data = previous.to_bytes(8, "little") + token_id.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def prefix_hashes(token_ids: Sequence[int]) -> Iterator[int]:
    """Yield the hash of each non-empty prefix, shortest first."""
    value = 0
    for token_id in token_ids:
        value = prefix_hash(value, token_id)
        yield value


def expected_tokens(token_ids: Sequence[int], num_tokens: int, vocab_size: int) -> list[int]:
    """Return what FakeRankPool generates after `token_ids`: each token is the hash of all tokens before it."""
    value = list(prefix_hashes(token_ids))[-1]
    generated = []
    for _ in range(num_tokens):
        generated.append(value % vocab_size)
        value = prefix_hash(value, generated[-1])
    return generated


@dataclass
class _FakeRow:
    token_ids: list[int]
    hashes: list[int]
    num_computed: int
    block_ids: list[int]

    def append(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self.hashes.append(prefix_hash(self.hashes[-1], token_id))


@dataclass
class FakeRankPool:
    """Implements engine.ranks.RankPool. The next token of a row is a hash of all its tokens, modulo `vocab_size`."""

    world_size: int = 1
    vocab_size: int = 1000
    device: str = "cpu"
    free_memory_bytes: int = 8 * 2**30
    dies_at_step: int | None = None
    """collect() of this step raises RankDied."""
    fails_row: Callable[[int, int], bool] | None = None
    """(step, row) -> whether that row reports an error instead of a token."""
    plans: list[StepPlan] = field(default_factory=list)
    """Every plan submitted, in order."""
    rows: dict[int, _FakeRow] = field(default_factory=dict)
    is_closed: bool = False
    generations: list[int] = field(default_factory=list)
    """Of every renewal."""
    renewal_fails_with: ReplicaFailed | None = None
    _load: Load | None = None
    _slots: dict[int, int] = field(default_factory=dict)
    _results: deque[StepResult] = field(default_factory=deque)
    _previous_rows: list[int] = field(default_factory=list)
    _has_failed: bool = False

    def join(self, on_progress: Callable[[Progress], None]) -> list[Joined]:
        """Return ranks that share one node."""
        for rank in range(self.world_size):
            on_progress(Progress(rank, "connect", 1, 1))
        return [
            Joined(
                rank=rank,
                generation=0,
                pid=1000 + rank,
                host="127.0.0.1",
                node="node",
                device=self.device,
                total_memory_bytes=2 * self.free_memory_bytes,
                free_memory_bytes=self.free_memory_bytes,
            )
            for rank in range(self.world_size)
        ]

    def load(self, load: Load, on_progress: Callable[[Progress], None]) -> list[Loaded]:
        """Remember the limits that plans must keep."""
        self._load = load
        for rank in range(self.world_size):
            on_progress(Progress(rank, "ready", 1, 1))
        return [Loaded(rank, weight_bytes=0, kv_bytes=0, load_time_s=0.0) for rank in range(self.world_size)]

    def paces(self) -> list[RankPace]:
        """Return the same of every rank: as many steps as there were plans, 10 ms each."""
        num_steps = len(self.plans)
        return [RankPace(rank, num_steps, 0.01 * num_steps) for rank in range(self.world_size)]

    def check(self) -> None:
        """Return: a fake rank dies at a step."""

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Forget it: a fake rank dies at a step."""

    def renew(self, generation: int) -> None:
        """Remember the generation, or fail."""
        if self.renewal_fails_with is not None:
            raise self.renewal_fails_with
        self.generations.append(generation)

    def submit(self, plan: StepPlan) -> None:
        """Check and run the plan at once; AssertionError if it breaks a rule."""
        self._check_open()
        assert len(self._results) < MAX_PLANS_UNDER_WAY, "three plans under way"
        assert not self.plans or plan.step > self.plans[-1].step, "steps must grow"
        self.plans.append(plan)
        self._results.append(StepResult(plan.step, SampledTokens.of(self._run(plan)), rank_time_s=0.0))

    def collect(self, timeout_s: float) -> StepResult:
        """Return the oldest result; RankDied at `dies_at_step`."""
        self._check_open()
        assert self._results, "collect without submit"
        result = self._results.popleft()
        if self.dies_at_step is not None and result.step >= self.dies_at_step:
            self._has_failed = True
            raise RankDied(f"rank 0 died at step {result.step}")
        return result

    def close(self) -> None:
        """Refuse everything from now on."""
        self.is_closed = True

    def _check_open(self) -> None:
        assert self._load is not None, "load comes before plans"
        assert not self.is_closed, "the pool is closed"
        assert not self._has_failed, "only close is allowed after a failure"

    def _run(self, plan: StepPlan) -> list[RowToken]:
        for row in plan.freed:
            assert row in self.rows, f"row {row} is freed but not in use"
            del self.rows[row]
        for start in plan.started:
            self._start(start)
        for appended in plan.appended:
            assert appended.row in self.rows, f"blocks appended to row {appended.row}, which is not in use"
            self._check_blocks(appended.block_ids)
            self.rows[appended.row].block_ids.extend(appended.block_ids)
        chunks = plan.chunks
        if chunks is None:
            assert not plan.decodes, "a plan that repeats the one before names no rows"
            chunks = [Chunk(row, 1) for row in self._previous_rows]
        chunks = [Chunk(row, 1) for row in unpack_integers(plan.decodes).tolist()] + chunks
        self._check_chunks(chunks)
        self._previous_rows = [chunk.row for chunk in chunks]
        return [token for chunk in chunks if (token := self._compute(plan.step, chunk)) is not None]

    def _start(self, start: RowStart) -> None:
        assert self._load is not None
        assert start.row not in self.rows, f"row {start.row} is started twice"
        assert 0 <= start.row < self._load.max_rows, f"row {start.row} is over max_rows={self._load.max_rows}"
        assert 0 < start.num_prompt_tokens <= len(start.token_ids), "num_prompt_tokens does not fit token_ids"
        assert 0 <= start.num_computed_tokens < len(start.token_ids), "at least one token must be computed"
        assert all(0 <= token < self.vocab_size for token in start.token_ids), "token id out of range"
        assert len(start.token_ids) <= self._load.max_model_len, "longer than max_model_len"
        self._check_blocks(start.block_ids)
        row = _FakeRow(
            list(start.token_ids),
            list(prefix_hashes(start.token_ids)),
            start.num_computed_tokens,
            list(start.block_ids),
        )
        self.rows[start.row] = row
        self._check_context(start.row, row)

    def _check_blocks(self, block_ids: list[int]) -> None:
        assert self._load is not None
        assert all(0 <= block < self._load.num_blocks for block in block_ids), f"block out of range in {block_ids}"

    def _check_chunks(self, chunks: list[Chunk]) -> None:
        assert self._load is not None
        rows = [chunk.row for chunk in chunks]
        assert len(set(rows)) == len(rows), "a row has two chunks in one step"
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        assert num_tokens <= self._load.max_step_tokens, f"{num_tokens} tokens are over max_step_tokens"

    def _check_context(self, row_id: int, row: _FakeRow) -> None:
        for position in range(row.num_computed):
            slot = self._slot(row, position)
            assert self._slots.get(slot) == row.hashes[position], (
                f"row {row_id} position {position} reads block {slot // self._block_size}, which holds another prefix"
            )

    def _compute(self, step: int, chunk: Chunk) -> RowToken | None:
        assert chunk.row in self.rows, f"chunk for row {chunk.row}, which is not in use"
        row = self.rows[chunk.row]
        end = row.num_computed + chunk.num_tokens
        assert chunk.num_tokens >= 1, "an empty chunk"
        assert end <= len(row.token_ids), f"row {chunk.row} computes {end} tokens but knows {len(row.token_ids)}"
        self._check_context(chunk.row, row)
        for position in range(row.num_computed, end):
            self._write(chunk.row, row, position)
        row.num_computed = end
        if end < len(row.token_ids):
            return None
        token_id = row.hashes[-1] % self.vocab_size
        row.append(token_id)
        if self.fails_row is not None and self.fails_row(step, chunk.row):
            return RowToken(chunk.row, 0, error=ErrorInfo.of(ReplicaFailed("logits are not finite")))
        return RowToken(chunk.row, token_id)

    def _write(self, row_id: int, row: _FakeRow, position: int) -> None:
        slot = self._slot(row, position)
        block = slot // self._block_size
        is_shared = any(block in other.block_ids for other_id, other in self.rows.items() if other_id != row_id)
        assert not is_shared or self._slots.get(slot) == row.hashes[position], (
            f"row {row_id} overwrites block {block}, which another row reads"
        )
        self._slots[slot] = row.hashes[position]

    @property
    def _block_size(self) -> int:
        assert self._load is not None
        return self._load.block_size

    def _slot(self, row: _FakeRow, position: int) -> int:
        index, offset = divmod(position, self._block_size)
        assert index < len(row.block_ids), f"no block for position {position}; the table has {len(row.block_ids)}"
        return row.block_ids[index] * self._block_size + offset
