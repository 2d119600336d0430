"""Writes scheduling decisions down as the delta plans that ranks obey."""

from collections.abc import Sequence
from typing import NamedTuple

from engine.decode_batch import NOBODY, DecodeBatch
from engine.live_request import RowStay
from parallel.plan import BlocksAppended, Chunk, RowStart, StepPlan, pack_integers

ScheduledPrefill = tuple[RowStay, int, bool]
"""A chunk: whose, how many tokens, and whether it reaches the end of the row's tokens, so that the row samples one."""


class ScheduledStep(NamedTuple):
    """A plan, and whom it is for."""

    plan: StepPlan
    num_tokens: int
    decodes: DecodeBatch
    """All of which sample."""
    ending: Sequence[RowStay]
    """Those of them that get their last token."""
    prefills: Sequence[ScheduledPrefill]
    """In the order of the plan, after the decodes."""
    asked: bytes
    """The rows that sample, packed: what rank 0 must answer for."""
    num_departures: int
    """Stays that were over when the step was scheduled; if more are when it is committed, some tokens may be void."""


class StepWriter:
    """Owns row numbers and remembers what the ranks were told last.

    Ranks free rows before they start new ones, so a row given back may change hands within one plan.
    """

    def __init__(self, num_rows: int) -> None:
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._step = 0
        self._last_rows = b""
        self.num_departures = 0
        """Rows that were given back so far."""
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
        self.num_departures += 1

    def start(self, stay: RowStay) -> None:
        """Have the ranks set up the stay's row."""
        self._started.append(stay.to_row_start())

    def append_block(self, stay: RowStay, block: int) -> None:
        """Grow the stay's block table, here and on the ranks."""
        stay.blocks.append(block)
        self._appended.append(BlocksAppended(stay.row, [block]))

    def decode(self, batch: DecodeBatch, ending: Sequence[RowStay]) -> None:
        """Have the ranks compute a token of each row of the batch; once a plan, before any prefill."""
        self._decodes, self._ending = batch, ending
        self.num_tokens = len(batch)

    def prefill(self, stay: RowStay, num_tokens: int) -> bool:
        """Have the ranks compute a row's next tokens; return whether those are all, so that it will decode."""
        stay.num_scheduled_tokens += num_tokens
        is_sampled = stay.num_unscheduled_tokens == 0
        self._prefills.append((stay, num_tokens, is_sampled))
        self.num_tokens += num_tokens
        return is_sampled

    def finish(self) -> ScheduledStep | None:
        """Return the step and begin the next; None if nothing is to be computed (freed rows are told later)."""
        return self.finish_anyway() if self.num_tokens else None

    def finish_anyway(self) -> ScheduledStep:
        """Return the step, also an empty one, and begin the next."""
        self._step += 1
        decoding, prefills = self._decodes.packed_rows, self._prefills
        is_repeated = bool(decoding) and not prefills and decoding == self._last_rows
        plan = StepPlan(
            step=self._step,
            chunks=None if is_repeated else [Chunk(stay.row, num_tokens) for stay, num_tokens, _ in prefills],
            freed=self._freed,
            started=self._started,
            appended=self._appended,
            decodes=b"" if is_repeated else decoding,
        )
        asked = self._last_rows = decoding
        if prefills:
            asked += pack_integers([stay.row for stay, _, is_sampled in prefills if is_sampled])
            self._last_rows += pack_integers([stay.row for stay, _, _ in prefills])
        step = ScheduledStep(plan, self.num_tokens, self._decodes, self._ending, prefills, asked, self.num_departures)
        self._begin()
        return step

    def _begin(self) -> None:
        self.num_tokens = 0
        """Tokens of the plan being written."""
        self._decodes = NOBODY
        self._ending: Sequence[RowStay] = ()
        self._prefills: list[ScheduledPrefill] = []
        self._freed: list[int] = []
        self._started: list[RowStart] = []
        self._appended: list[BlocksAppended] = []
