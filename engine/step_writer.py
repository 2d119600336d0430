"""Writes scheduling decisions down as the delta plans that ranks obey."""

from dataclasses import dataclass

from engine.live_request import RowStay
from parallel.plan import BlocksAppended, Chunk, RowStart, StepPlan

ScheduledChunk = tuple[RowStay, int, bool]
"""One row's part of a step: whose, how many tokens, and whether that reaches the end of the row's tokens, so that the
row samples one. A plain tuple, because a step makes one for every running request."""


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """A plan, and whom it is for."""

    plan: StepPlan
    chunks: list[ScheduledChunk]
    num_tokens: int


class StepWriter:
    """Owns row numbers and remembers what the ranks were told last.

    Ranks free rows before they start new ones, so a row given back may change hands within one plan.
    """

    def __init__(self, num_rows: int) -> None:
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._step = 0
        self._last_rows: list[int] = []
        self._begin()

    @property
    def has_free_row(self) -> bool:
        """Whether `take_row` may be called."""
        return bool(self._free_rows)

    def take_row(self) -> int:
        """Return a row for a request about to start."""
        return self._free_rows.pop()

    def give_back_row(self, row: int) -> None:
        """Free a row, here at once and on the ranks by the next plan they get."""
        self._freed.append(row)
        self._free_rows.append(row)

    def start(self, stay: RowStay) -> None:
        """Have the ranks set up the stay's row."""
        self._started.append(stay.to_row_start())

    def append_block(self, stay: RowStay, block: int) -> None:
        """Grow the stay's block table, here and on the ranks."""
        stay.blocks.append(block)
        self._appended.append(BlocksAppended(stay.row, [block]))

    def compute(self, stay: RowStay, num_tokens: int) -> None:
        """Have the ranks compute the stay's next tokens; counts them as scheduled."""
        stay.num_scheduled_tokens += num_tokens
        is_sampled = stay.num_scheduled_tokens == stay.num_expected_tokens
        if is_sampled:
            stay.num_expected_tokens += 1
        self._chunks.append((stay, num_tokens, is_sampled))
        self.num_tokens += num_tokens

    def finish(self) -> ScheduledStep | None:
        """Return the step and begin the next; None if nothing is to be computed (freed rows are told later)."""
        return self.finish_anyway() if self._chunks else None

    def finish_anyway(self) -> ScheduledStep:
        """Return the step, also an empty one, and begin the next."""
        chunks, rows = self._chunks, [stay.row for stay, _, _ in self._chunks]
        self._step += 1
        is_repeated = 0 < self.num_tokens == len(chunks) and rows == self._last_rows
        plan = StepPlan(
            step=self._step,
            chunks=None if is_repeated else [Chunk(stay.row, num_tokens) for stay, num_tokens, _ in chunks],
            freed=self._freed,
            started=self._started,
            appended=self._appended,
        )
        step = ScheduledStep(plan, chunks, self.num_tokens)
        self._last_rows = rows
        self._begin()
        return step

    def _begin(self) -> None:
        self.num_tokens = 0
        """Tokens of the plan being written."""
        self._chunks: list[ScheduledChunk] = []
        self._freed: list[int] = []
        self._started: list[RowStart] = []
        self._appended: list[BlocksAppended] = []
