"""Decides what each step computes. There is no prefill phase and no decode phase: a request has tokens, some of them
are computed, and a step plan says how many more of each request's tokens to compute.

Running requests are ordered by when they were due (arrival, shifted by priority), and the last one is preempted first.
The first in order is never preempted for another, and whoever waits fits an empty pool, which admission sees to; so
every step makes progress. Who gets a free row is the waiting queue's choice.

A decode step costs next to nothing per request: what is the same from step to step is kept in a `DecodeBatch`, tokens
go to the `TokenLog` for all rows at once, and the `Agenda` knows the few requests to which something happens.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import EaglerayError, ErrorInfo, ReplicaFailed
from engine.agenda import Agenda
from engine.backlog import Backlog
from engine.block_pool import BlockPool
from engine.config import SchedulerConfig
from engine.deadlines import Deadlines
from engine.decode_batch import DecodingStays, addressees_of
from engine.live_request import LiveRequest, RowStay
from engine.outbox import Outbox
from engine.prefix_cache import PrefixCache
from engine.request import FinishReason
from engine.step_writer import ScheduledStep, StepWriter
from engine.stop_tokens import StopTokens
from engine.token_log import TokenLog
from engine.waiting_queue import WaitingQueue
from parallel.plan import RowToken, StepPlan, StepResult, unpack_integers

_LOG_SLACK = 4
"""Decode steps that the token log holds beyond a block's: those between a block's end and its being taken over."""


@dataclass(slots=True)
class SchedulerCounters:
    """Totals since the start."""

    num_steps: int = 0
    num_preemptions: int = 0
    num_generated_tokens: int = 0
    num_prompt_tokens: int = 0
    """Prompt tokens of requests that began to run."""
    num_cached_prompt_tokens: int = 0
    """Those of them that were not computed because the prefix cache had them."""


class Scheduler:
    """Owns every waiting and running request, their blocks and rows. Used by the engine thread only.

    `plan` and `commit` alternate; more than one plan may be out before the first is committed, and commits come in the
    order of plans. What requests are to be told goes to `outbox`, which is empty at every commit.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        prefix_cache: PrefixCache,
        block_size: int,
        outbox: Outbox,
        backlog: Backlog,
    ) -> None:
        self.counters = SchedulerCounters()
        self.running: list[RowStay] = []
        """In order."""
        self.num_computed_tokens = 0
        """Of all running requests."""
        self._prefilling: list[RowStay] = []
        """Those of them that are not wholly scheduled yet, in order."""
        self._decoding = DecodingStays()
        self._config = config
        self._pool = pool
        self._prefix_cache = prefix_cache
        self._block_size = block_size
        self._stop_tokens = StopTokens()
        self._outbox = outbox
        self._backlog = backlog
        self._writer = StepWriter(config.max_running)
        self._log = TokenLog(block_size + _LOG_SLACK, config.max_running)
        self._agenda = Agenda(block_size)
        self._tick = 0
        """Of the latest plan; the log's is that of the latest commit."""
        self._unpublished: list[RowStay] = []
        """Stays that may have full blocks which the prefix cache does not know."""
        self._waiting = WaitingQueue()
        self._deadlines = Deadlines()

    def add(self, live: LiveRequest) -> None:
        """Queue a request. It must be able to fit an otherwise empty pool."""
        self._waiting.push(live)
        self._deadlines.add(live)

    def plan(self) -> ScheduledStep | None:
        """Return the next step, or None when nothing can be computed before a result comes or a request arrives."""
        self._schedule_decodes()
        self._schedule_prefills()
        self._admit()
        step = self._writer.finish()
        self._tick += step is not None
        return step

    def empty_plan(self) -> StepPlan:
        """Return a plan that computes nothing; it has a result but nothing to commit."""
        return self._writer.finish_anyway().plan

    def commit(self, step: ScheduledStep, result: StepResult) -> None:
        """Take in what a step computed and sampled. Raises ReplicaFailed if the result does not answer the plan."""
        _check_answers(step, result)
        self.counters.num_steps += 1
        token_ids = unpack_integers(result.sampled.token_ids)
        remarks = {token.row: token for token in result.sampled.remarks}
        self._commit_decodes(step, token_ids[: len(step.decodes)], remarks)
        if step.prefills:
            self._commit_prefills(step, token_ids[len(step.decodes) :].tolist(), remarks)
        self._unpublished += self._agenda.filling(self._log.tick)

    def publish(self) -> None:
        """Have the prefix cache know every block that committed steps have filled; soon enough after each commit."""
        unpublished, self._unpublished = self._unpublished, []
        for stay in unpublished:
            if not stay.is_over:
                self._publish(stay)

    def cancel(self, live: LiveRequest) -> None:
        """End a waiting or running request; its blocks are available at once."""
        if not live.is_ended:
            self._end(live, finish_reason="cancelled")

    def fail(self, live: LiveRequest, error: EaglerayError) -> None:
        """End a waiting or running request with an error."""
        if not live.is_ended:
            self._end(live, error=ErrorInfo.of(error))

    def expire(self, now_s: float) -> None:
        """End every request whose deadline has passed, and those waiting that can no longer meet theirs."""
        for live, error in self._deadlines.missed(now_s):
            self.fail(live, error)

    # Planning

    def _schedule_decodes(self) -> None:
        """Give every decoding request its token, preempting others for lack of blocks if need be."""
        tick = self._tick + 1
        growing = self._agenda.growing(tick)
        if growing:
            self._grow(growing)
        ending = self._agenda.ending(tick)
        self._writer.decode(self._decoding.batch(), ending)
        for stay in ending:
            self._decoding.discard(stay)

    def _grow(self, growing: Sequence[RowStay]) -> None:
        """Give each stay a block, or preempt the last in order until there is one for each that is left."""
        while len(growing) > self._pool.num_available:
            self._preempt(self.running[-1])
            growing = [stay for stay in growing if not stay.is_over]
        for stay, block in zip(growing, self._pool.allocate(len(growing)), strict=True):
            self._writer.append_block(stay, block)
            self._agenda.note(stay)

    def _schedule_prefills(self) -> None:
        for stay in self._prefilling.copy():
            self._compute_chunk(stay)

    def _admit(self) -> None:
        if self._waiting.peek() is None:
            self._backlog.note_blocks(has_free_blocks=True)
            return
        # So that a request finds the prefix that another one has just computed.
        self.publish()
        while self._budget > 0 and self._writer.has_free_row and (live := self._waiting.peek()) is not None:
            blocks = self._find_blocks(live)
            self._backlog.note_blocks(has_free_blocks=blocks is not None)
            if blocks is None:
                return
            self._waiting.pop()
            self._start(live, *blocks)

    @property
    def _budget(self) -> int:
        return self._config.step_tokens - self._writer.num_tokens

    def _compute_chunk(self, stay: RowStay) -> None:
        num_tokens = min(stay.num_unscheduled_tokens, self._config.max_prefill_chunk, self._budget)
        if num_tokens > 0 and self._writer.prefill(stay, num_tokens):
            self._prefilling.remove(stay)
            self._start_decoding(stay)

    def _find_blocks(self, live: LiveRequest) -> tuple[list[int], int] | None:
        """Return referenced blocks for all tokens of a waiting request and how many of them are cached, or None.

        One block more must be left for each running request, so that admission does not cause the next preemption. It
        also keeps a preempted request from coming right back: it asks for all it released, and somebody took a block.
        """
        cached = self._prefix_cache.match(live.hasher, live.packed_tokens)
        num_new = -(-live.num_tokens // self._block_size) - len(cached)
        num_revived = sum(map(self._pool.is_cached, cached))
        if num_new + num_revived + len(self.running) > self._pool.num_available:
            return None
        self._pool.share(cached)
        return cached + self._pool.allocate(num_new), len(cached)

    # Stays

    def _start(self, live: LiveRequest, blocks: list[int], num_cached_blocks: int) -> None:
        row = self._writer.take_row()
        stay = live.stay = RowStay(live, row, blocks, num_cached_blocks, self._block_size, self._log)
        if live.num_cached_tokens is None:
            num_prompt = live.request.num_prompt_tokens
            live.num_cached_tokens = min(stay.num_computed_tokens, num_prompt)
            self.counters.num_prompt_tokens += num_prompt
            self.counters.num_cached_prompt_tokens += live.num_cached_tokens
            self._waiting.charge(live, num_prompt - live.num_cached_tokens, live.claim.num_output_tokens)
        self._backlog.start(live.claim, live.num_tokens, stay.num_computed_tokens)
        self.num_computed_tokens += stay.num_computed_tokens
        self._stop_tokens.add(live.stop_ids)
        insort(self.running, stay, key=_order)
        insort(self._prefilling, stay, key=_order)
        self._writer.start(stay)
        self._compute_chunk(stay)

    def _start_decoding(self, stay: RowStay) -> None:
        """Have the stay take part from the next decode step on, unless the token its prefill gives is the last."""
        num_tokens = stay.live.num_tokens
        if num_tokens + 1 < stay.live.max_length:
            stay.position_of_tick_0 = num_tokens - (self._tick + 2)
            self._agenda.note(stay)
            self._decoding.add(stay)

    def _preempt(self, stay: RowStay) -> None:
        """Take a request off its row; its tokens are kept, and its full blocks stay cached while nobody needs them."""
        self._publish(stay)
        self._leave_row(stay)
        self._backlog.put_back(stay.live.claim)
        self._waiting.push(stay.live)
        self.counters.num_preemptions += 1

    def _leave_row(self, stay: RowStay) -> None:
        # Plans already sent may still write into these blocks. That is harmless: ranks obey plans in order, so
        # whoever gets a block next writes it later.
        self._pool.release(stay.blocks)
        self.num_computed_tokens -= stay.num_computed_tokens
        self._stop_tokens.remove(stay.live.stop_ids)
        self._writer.give_back_row(stay.row)
        self._decoding.discard(stay)
        if stay in self._prefilling:
            self._prefilling.remove(stay)
        self.running.remove(stay)
        stay.live.stay = None

    def _publish(self, stay: RowStay) -> None:
        """Take the stay's tokens over from the log, and have the prefix cache know its full blocks."""
        num_full_blocks = stay.take_over_tokens() // self._block_size
        if num_full_blocks > stay.num_published_blocks:
            live = stay.live
            first, stay.num_published_blocks = stay.num_published_blocks, num_full_blocks
            self._prefix_cache.publish(live.hasher, live.packed_tokens, stay.blocks, first, num_full_blocks)

    # Results

    def _commit_decodes(self, step: ScheduledStep, token_ids: NDArray[np.int32], remarks: dict[int, RowToken]) -> None:
        """Log a token for every decode, and tell of them all in one go, unless more happens to some."""
        batch, tokens = step.decodes, token_ids.tolist()
        self._log.write(batch.rows, token_ids)
        suspects = self._stop_tokens.suspects(tokens)
        if suspects or step.ending or remarks or step.num_departures != self._writer.num_departures:
            self._commit_singly(step, tokens, suspects, remarks)
        else:
            self.num_computed_tokens += len(tokens)
            self.counters.num_generated_tokens += len(tokens)
            self._outbox.put_tokens(batch.addressees, tokens)

    def _commit_singly(
        self, step: ScheduledStep, tokens: list[int], suspects: Sequence[int], remarks: dict[int, RowToken]
    ) -> None:
        """Drop void tokens, look at those to which more may happen one by one, tell of the others in one go."""
        stays = step.decodes.stays
        void = {place for place, stay in enumerate(stays) if stay.is_over}
        special = {*suspects, *map(stays.index, step.ending)}
        special.update(place for place, stay in enumerate(stays) if stay.row in remarks)
        special -= void
        plain = [place for place in range(len(tokens)) if place not in special and place not in void]
        self.num_computed_tokens += len(tokens) - len(void)
        self.counters.num_generated_tokens += len(plain)
        self._outbox.put_tokens(addressees_of([stays[place] for place in plain]), [tokens[place] for place in plain])
        for place in sorted(special):
            stay = stays[place]
            stay.take_over_tokens()
            self._take_token(stay, remarks.get(stay.row) or RowToken(stay.row, tokens[place]))

    def _commit_prefills(self, step: ScheduledStep, token_ids: list[int], remarks: dict[int, RowToken]) -> None:
        """Count computed tokens; tell of the tokens that ended a prefill."""
        sampled = iter(token_ids)
        for stay, num_tokens, is_sampled in step.prefills:
            token_id = next(sampled) if is_sampled else None
            if stay.is_over:
                continue
            stay.commit_prefill(num_tokens, token_id, self._log.tick)
            self.num_computed_tokens += num_tokens
            self._unpublished.append(stay)
            self._backlog.advance(stay.live.claim, num_tokens)
            if token_id is not None:
                self._backlog.end_prefill(stay.live.claim)
                self._take_token(stay, remarks.get(stay.row) or RowToken(stay.row, token_id))

    def _take_token(self, stay: RowStay, token: RowToken) -> None:
        """Tell of a token that the request has taken over, or end the request."""
        live = stay.live
        if token.error is not None:
            # Whatever broke its logits may be in its keys and values too: nobody may find them.
            self._pool.forget(stay.blocks)
            stay.num_published_blocks = len(stay.blocks)
            self._end(live, error=token.error)
        elif token.token_id in live.stop_ids:
            _note_length(live, self._backlog)
            self._end(live, finish_reason="stop", stop_token_id=token.token_id)
        else:
            self.counters.num_generated_tokens += 1
            is_last = live.num_tokens >= live.max_length
            if is_last:
                _note_length(live, self._backlog)
                self._leave(live)
            timings = self._backlog.timings(live.claim) if is_last or live.claim.stopwatch.has_news else None
            self._outbox.put_token(live, token, "length" if is_last else None, timings)

    def _end(
        self,
        live: LiveRequest,
        finish_reason: FinishReason | None = None,
        error: ErrorInfo | None = None,
        stop_token_id: int | None = None,
    ) -> None:
        """End a request with a terminal event that has no token."""
        self._leave(live)
        self._outbox.put_end(live, finish_reason, error, stop_token_id, self._backlog.timings(live.claim))

    def _leave(self, live: LiveRequest) -> None:
        """Take an ending request off its row or out of the queue."""
        live.is_ended = True
        self._backlog.leave(live.claim)
        if live.num_cached_tokens is not None:  # it was charged
            num_generated = live.num_tokens - len(live.request.token_ids)
            self._waiting.charge(live, 0, num_generated - live.claim.num_output_tokens)
        if live.stay is not None:
            self._publish(live.stay)
            self._leave_row(live.stay)


def _order(stay: RowStay) -> tuple[float, int]:
    return stay.live.order


def _note_length(live: LiveRequest, backlog: Backlog) -> None:
    """Have later requests be expected to be like this one, which ends as it was meant to."""
    num_prompt = live.request.num_prompt_tokens
    backlog.estimates.note_end(num_prompt, live.num_tokens - num_prompt)


def _check_answers(step: ScheduledStep, result: StepResult) -> None:
    if result.step != step.plan.step or result.sampled.rows != step.asked:
        answered, asked = unpack_integers(result.sampled.rows).tolist(), unpack_integers(step.asked).tolist()
        raise ReplicaFailed(
            f"rank 0 answered step {result.step} for rows {answered}; step {step.plan.step} asked for rows {asked}"
        )
