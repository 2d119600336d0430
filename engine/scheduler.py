"""Decides what each step computes. There is no prefill phase and no decode phase: a request has tokens, some of them
are computed, and a step plan says how many more of each request's tokens to compute.

Requests are ordered by (priority, arrival), always. The first in order is never preempted for another, and can be
refused room only while nothing it could preempt is left, which admission rules out; so every step makes progress.
"""

from bisect import insort
from dataclasses import dataclass

from core.errors import DeadlineExceeded, EaglerayError, ErrorInfo, ReplicaFailed
from engine.block_pool import BlockPool
from engine.config import SchedulerConfig
from engine.live_request import LiveRequest, RowStay
from engine.prefix_cache import PrefixCache
from engine.request import FinishReason, TokenEvent
from engine.step_writer import ScheduledStep, StepWriter
from engine.waiting_queue import RequestQueue
from parallel.plan import RowToken, StepPlan, StepResult

Outcome = tuple[LiveRequest, TokenEvent]
"""An event and whose it is."""


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
    order of plans.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool, prefix_cache: PrefixCache, block_size: int) -> None:
        self.counters = SchedulerCounters()
        self.running: list[RowStay] = []
        """In order."""
        self._config = config
        self._pool = pool
        self._prefix_cache = prefix_cache
        self._block_size = block_size
        self._writer = StepWriter(config.max_running)
        self._waiting: RequestQueue[tuple[int, int]] = RequestQueue()
        self._deadlines: RequestQueue[float] = RequestQueue()

    def add(self, live: LiveRequest) -> None:
        """Queue a request. It must be able to fit an otherwise empty pool."""
        self._waiting.push(live.order, live)
        if live.deadline_at_s is not None:
            self._deadlines.push(live.deadline_at_s, live)

    def plan(self) -> ScheduledStep | None:
        """Return the next step, or None when nothing can be computed before a result comes or a request arrives."""
        prefills = self._schedule_decodes()
        self._schedule_prefills(prefills)
        self._admit()
        return self._writer.finish()

    def empty_plan(self) -> StepPlan:
        """Return a plan that computes nothing; it has a result but nothing to commit."""
        return self._writer.finish_anyway().plan

    def commit(self, step: ScheduledStep, result: StepResult) -> list[Outcome]:
        """Take in what a step computed and sampled; return one event for each request that got a token or ended.

        Raises ReplicaFailed if the result does not answer the plan.
        """
        _check_answers(step, result)
        self.counters.num_steps += 1
        outcomes: list[Outcome] = []
        tokens = iter(result.tokens)
        for stay, num_tokens, is_sampled in step.chunks:
            token = next(tokens) if is_sampled else None
            if stay.is_over:
                continue
            self._advance(stay, num_tokens)
            if token is not None:
                outcomes.append((stay.live, self._take_token(stay, token)))
        return outcomes

    def cancel(self, live: LiveRequest) -> list[Outcome]:
        """End a waiting or running request; its blocks are available at once."""
        return [] if live.is_ended else [(live, self._end(live, finish_reason="cancelled"))]

    def fail(self, live: LiveRequest, error: EaglerayError) -> list[Outcome]:
        """End a waiting or running request with an error."""
        return [] if live.is_ended else [(live, self._end(live, error=ErrorInfo.of(error)))]

    def expire(self, now_s: float) -> list[Outcome]:
        """End every request whose deadline has passed."""
        outcomes: list[Outcome] = []
        while (deadline_at_s := self._deadlines.peek_key()) is not None and deadline_at_s <= now_s:
            live = self._deadlines.pop()
            state = "waiting" if live.stay is None else "running"
            num_output = len(live.token_ids) - live.request.num_prompt_tokens
            message = (
                f"the deadline of {live.request.deadline_s:g} s passed while {state}, {num_output} tokens generated"
            )
            outcomes += self.fail(live, DeadlineExceeded(message))
        return outcomes

    def _schedule_decodes(self) -> list[RowStay]:
        """Give every running request that needs one token its token; return those that need more, in order."""
        prefills: list[RowStay] = []
        # Preemption takes from the end of `running`, at or after the current stay, so it never takes one that is in the
        # plan already, or among the prefills found so far.
        for stay in self.running:
            num_tokens = stay.num_unscheduled_tokens
            if num_tokens > 1:
                prefills.append(stay)
            elif num_tokens == 1 and self._has_room(stay):
                self._writer.compute(stay, 1)
        return prefills

    def _schedule_prefills(self, prefills: list[RowStay]) -> None:
        for stay in prefills:
            self._compute_chunk(stay)

    def _admit(self) -> None:
        while self._budget > 0 and self._writer.has_free_row and (live := self._waiting.peek()) is not None:
            if (blocks := self._find_blocks(live)) is None:
                return
            self._waiting.pop()
            self._start(live, *blocks)

    @property
    def _budget(self) -> int:
        return self._config.max_step_tokens - self._writer.num_tokens

    def _compute_chunk(self, stay: RowStay) -> None:
        num_tokens = min(stay.num_unscheduled_tokens, self._config.max_prefill_chunk, self._budget)
        if num_tokens > 0:
            self._writer.compute(stay, num_tokens)

    def _has_room(self, stay: RowStay) -> bool:
        """Whether the stay has a slot for one more token, after preempting others if need be, or itself at last."""
        if stay.num_scheduled_tokens < len(stay.blocks) * self._block_size:
            return True
        while self._pool.num_available == 0:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is stay:
                return False
        self._writer.append_block(stay, self._pool.allocate(1)[0])
        return True

    def _find_blocks(self, live: LiveRequest) -> tuple[list[int], int] | None:
        """Return referenced blocks for all tokens of a waiting request and how many of them are cached, or None.

        One block more must be left for each running request, so that admission does not cause the next preemption. It
        also keeps a preempted request from coming right back: it asks for all it released, and somebody took a block.
        """
        cached = self._prefix_cache.match(live.hasher, live.token_ids)
        num_new = -(-len(live.token_ids) // self._block_size) - len(cached)
        num_revived = sum(map(self._pool.is_cached, cached))
        if num_new + num_revived + len(self.running) > self._pool.num_available:
            return None
        self._pool.share(cached)
        return cached + self._pool.allocate(num_new), len(cached)

    def _start(self, live: LiveRequest, blocks: list[int], num_cached_blocks: int) -> None:
        stay = RowStay(live, self._writer.take_row(), blocks, num_cached_blocks, self._block_size)
        if live.num_cached_tokens is None:
            num_prompt = live.request.num_prompt_tokens
            live.num_cached_tokens = min(stay.num_computed_tokens, num_prompt)
            self.counters.num_prompt_tokens += num_prompt
            self.counters.num_cached_prompt_tokens += live.num_cached_tokens
        live.stay = stay
        insort(self.running, stay, key=_order)
        self._writer.start(stay)
        self._compute_chunk(stay)

    def _preempt(self, stay: RowStay) -> None:
        """Take a request off its row; its tokens are kept, and its full blocks stay cached while nobody needs them."""
        self._leave_row(stay)
        self._waiting.push(stay.live.order, stay.live)
        self.counters.num_preemptions += 1

    def _leave_row(self, stay: RowStay) -> None:
        # Plans already sent may still write into these blocks. That is harmless: ranks obey plans in order, so
        # whoever gets a block next writes it later.
        self._pool.release(stay.blocks)
        self._writer.give_back_row(stay.row)
        self.running.remove(stay)
        stay.live.stay = None

    def _advance(self, stay: RowStay, num_tokens: int) -> None:
        """Count computed tokens and publish the blocks they filled."""
        stay.num_computed_tokens += num_tokens
        num_full_blocks = stay.num_computed_tokens // self._block_size
        if num_full_blocks > stay.num_published_blocks:
            live = stay.live
            first, stay.num_published_blocks = stay.num_published_blocks, num_full_blocks
            self._prefix_cache.publish(live.hasher, live.token_ids, stay.blocks, first, num_full_blocks)

    def _take_token(self, stay: RowStay, token: RowToken) -> TokenEvent:
        """Append a sampled token to its request, or end the request."""
        live = stay.live
        if token.error is not None:
            # Whatever broke its logits may be in its keys and values too: nobody may find them.
            self._pool.forget(stay.blocks)
            return self._end(live, error=token.error)
        token_id = token.token_id
        if token_id in live.stop_ids:
            return self._end(live, finish_reason="stop", stop_token_id=token_id)
        live.token_ids.append(token_id)
        self.counters.num_generated_tokens += 1
        finish_reason = None
        if len(live.token_ids) >= live.max_length:
            self._leave(live)
            finish_reason = "length"
        logprobs = None if token.logprobs is None else [token.logprobs]
        return TokenEvent(
            live.request.request_id, [token_id], finish_reason, None, logprobs, live.take_num_cached_tokens()
        )

    def _end(
        self,
        live: LiveRequest,
        *,
        finish_reason: FinishReason | None = None,
        error: ErrorInfo | None = None,
        stop_token_id: int | None = None,
    ) -> TokenEvent:
        """End a request; return its terminal event."""
        self._leave(live)
        return TokenEvent(
            live.request.request_id,
            [],
            finish_reason,
            error,
            num_cached_tokens=live.take_num_cached_tokens(),
            stop_token_id=stop_token_id,
        )

    def _leave(self, live: LiveRequest) -> None:
        """Take an ending request off its row or out of the queue."""
        live.is_ended = True
        if live.stay is not None:
            self._leave_row(live.stay)


def _order(stay: RowStay) -> tuple[int, int]:
    return stay.live.order


def _check_answers(step: ScheduledStep, result: StepResult) -> None:
    asked = [stay.row for stay, _, is_sampled in step.chunks if is_sampled]
    answered = [token.row for token in result.tokens]
    if result.step != step.plan.step or asked != answered:
        raise ReplicaFailed(
            f"rank 0 answered step {result.step} for rows {answered}; step {step.plan.step} asked for rows {asked}"
        )
