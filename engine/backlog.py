"""Accepted work that has not been computed, and whether there may be more of it.

A request claims its prefill until its first token, and its output until it gets a row: from then on it holds nobody up.
What a newcomer waits for is the prefills before it and, while every row is taken, as many requests' ends as it has
requests before it. It waits no less than the oldest of its like has waited already, which tells at once when the ranks
have become slower than they were. Between tenants the scheduler shares fairly, so a tenant waits for its own work times
the number of tenants, if that is less: one that floods the queue is refused while the others are let in.
"""

import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from core.clock import Clock
from core.errors import QueueFull
from engine.config import SchedulerConfig
from engine.estimates import Estimates
from engine.request import GenerationRequest
from engine.request_timings import RequestTimings
from engine.stopwatch import Shortage, Stopwatch

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0


@dataclass(slots=True)
class Claim:
    """What one accepted request is expected to need. Changed by `Backlog` only."""

    tenant: str
    priority: int
    num_uncached_tokens: int
    """Prefill; exact once it has started."""
    num_output_tokens: int
    accepted_s: float
    predicted_wait_s: float | None
    """Time for the work before it, as it was predicted when it came; without the correction for bias."""
    state: Literal["waiting", "prefilling", "decoding", "ended"] = "waiting"
    num_prefilled_tokens: int = 0
    """Of the uncached ones; 0 while it waits."""
    has_run: bool = False
    """Whether it has had a row, and so waited for other reasons than its age tells."""
    stopwatch: Stopwatch = field(init=False)
    """Where its time goes: its phases are those of the claim."""

    def __post_init__(self) -> None:
        self.stopwatch = Stopwatch(self.accepted_s)


@dataclass(slots=True)
class Work:
    """A sum of claims."""

    num_requests: int = 0
    num_uncached_tokens: int = 0
    num_output_tokens: int = 0

    def add(self, claim: Claim) -> None:
        """Count a claim."""
        self.num_requests += 1
        self.num_uncached_tokens += claim.num_uncached_tokens
        self.num_output_tokens += claim.num_output_tokens

    def remove(self, claim: Claim) -> None:
        """Count a claim no longer; it must not have changed since."""
        self.num_requests -= 1
        self.num_uncached_tokens -= claim.num_uncached_tokens
        self.num_output_tokens -= claim.num_output_tokens


@dataclass(slots=True)
class Line:
    """The waiting requests of one tenant and priority."""

    work: Work = field(default_factory=Work)
    claims: deque[Claim] = field(default_factory=deque[Claim])
    """In order of arrival; those at the end of their wait are dropped when they come to the front."""

    def add(self, claim: Claim) -> None:
        """Count a claim."""
        self.work.add(claim)
        if not claim.has_run:
            self.claims.append(claim)

    def oldest_s(self) -> float | None:
        """Return when the oldest request that has not run was accepted."""
        while self.claims and (self.claims[0].state != "waiting" or self.claims[0].has_run):
            self.claims.popleft()
        return self.claims[0].accepted_s if self.claims else None


class Wait(NamedTuple):
    """How long a newcomer would wait for the work before it."""

    computed_s: float | None
    """By the costs of steps; None while they are not known."""
    expected_s: float
    """Corrected for how such predictions have turned out, and at least what the oldest has waited."""


class Backlog:
    """Sums over all accepted requests, by tenant and priority. Any thread; events of a request come in their order."""

    def __init__(self, config: SchedulerConfig, estimates: Estimates, clock: Clock) -> None:
        self.estimates = estimates
        self._clock = clock
        self.has_free_blocks = True
        """Whether requests wait for rows alone; false while they wait for KV blocks."""
        self._kv_shortage = Shortage(clock)
        self._config = config
        self._lock = threading.Lock()
        self._waiting = Work()
        self._waiting_by_tenant: defaultdict[str, defaultdict[int, Line]] = defaultdict(lambda: defaultdict(Line))
        self._num_prefill_tokens = 0
        self._num_running = 0
        self.num_preempted_waiting = 0
        """Waiting requests that had a row before."""

    def check(self, request: GenerationRequest, num_left: int) -> Wait:
        """Return how long the request would wait, if it may; `num_left`: the most tokens it may generate.

        Raises QueueFull if too much waits already, or if the request could not meet its own deadline.
        """
        with self._lock:
            wait = self._wait(request.tenant_key, request.priority)
            num_waiting_tokens = self._waiting.num_uncached_tokens + self._waiting.num_output_tokens
        if request.is_resumed:
            return wait  # it was let in before
        config, estimates = self._config, self.estimates
        limit = config.max_waiting_tokens
        if limit is not None and num_waiting_tokens:
            num_tokens = estimates.uncached_tokens(request) + estimates.output_tokens(request, num_left)
            if num_waiting_tokens + num_tokens > limit:
                raise _queue_full(
                    f"{num_waiting_tokens} tokens wait to be computed and the request adds {num_tokens}; the limit is "
                    f"max_waiting_tokens={limit}",
                    wait,
                )
        if wait.expected_s > config.max_wait_s:
            raise _queue_full(
                f"the request would wait about {wait.expected_s:.0f} s for others; the limit is "
                f"max_wait_s={config.max_wait_s:g}",
                wait,
            )
        deadline_s = request.deadline_s
        if deadline_s is not None and wait.expected_s + estimates.least_s(request, num_left) > deadline_s:
            raise _queue_full(
                f"the request would wait about {wait.expected_s:.1f} s for others and miss its deadline of "
                f"{deadline_s:g} s",
                wait,
            )
        return wait

    def note_blocks(self, has_free_blocks: bool) -> None:
        """The first in the queue lacks KV blocks from now on, or does not."""
        self.has_free_blocks = has_free_blocks
        self._kv_shortage.note(is_short=not has_free_blocks)

    def timings(self, claim: Claim) -> RequestTimings:
        """Return where the request's time went so far."""
        return claim.stopwatch.read(self._clock.now_s())

    def full(self, message: str) -> QueueFull:
        """Return a refusal that says when to come back."""
        wait_s = self.wait_s()
        return _queue_full(message, Wait(None, wait_s))

    @property
    def num_uncached_tokens(self) -> int:
        """Prefill that has still to be computed, as far as is known."""
        return self._waiting.num_uncached_tokens + self._num_prefill_tokens

    def enter(
        self, request: GenerationRequest, num_left: int, wait: Wait, num_cached_tokens: int | None = None
    ) -> Claim:
        """Count an accepted request, and return its claim; `num_cached_tokens` if somebody looked."""
        if num_cached_tokens is None:
            num_uncached_tokens = self.estimates.uncached_tokens(request)
        else:
            num_uncached_tokens = len(request.token_ids) - num_cached_tokens
        claim = Claim(
            tenant=request.tenant_key,
            priority=request.priority,
            num_uncached_tokens=num_uncached_tokens,
            num_output_tokens=self.estimates.output_tokens(request, num_left),
            accepted_s=self._clock.now_s(),
            predicted_wait_s=wait.computed_s,
        )
        claim.stopwatch.queue(claim.accepted_s, self._kv_shortage.total_s())
        with self._lock:
            self._add_waiting(claim)
        return claim

    def start(self, claim: Claim, num_tokens: int, num_cached_tokens: int) -> None:
        """The request has a row, and so many of its tokens need not be computed."""
        with self._lock:
            self._remove_waiting(claim)
            claim.num_uncached_tokens = num_tokens - num_cached_tokens
            claim.state, claim.has_run = "prefilling", True
            self._num_running += 1
            self._num_prefill_tokens += claim.num_uncached_tokens
        claim.stopwatch.start(self._clock.now_s(), self._kv_shortage.total_s(), num_tokens, num_cached_tokens)
        self.estimates.note_start(num_tokens, num_cached_tokens)

    def advance(self, claim: Claim, num_tokens: int) -> None:
        """So many more tokens of the request's prefill were computed."""
        with self._lock:
            claim.num_prefilled_tokens += num_tokens
            self._num_prefill_tokens -= num_tokens

    def end_prefill(self, claim: Claim) -> None:
        """The request has got the first token since it started."""
        with self._lock:
            self._num_prefill_tokens -= claim.num_uncached_tokens - claim.num_prefilled_tokens
            claim.state = "decoding"
        now_s = self._clock.now_s()
        claim.stopwatch.first_token(now_s)
        predicted_s, claim.predicted_wait_s = claim.predicted_wait_s, None
        if predicted_s is not None:
            own_s = self.estimates.work_s(claim.num_uncached_tokens, 0, 1) or 0.0
            self.estimates.note_wait(predicted_s, max(0.0, now_s - claim.accepted_s - own_s))

    def put_back(self, claim: Claim) -> None:
        """The request has lost its row and waits again; what it had computed may have to be computed anew."""
        with self._lock:
            self._leave_row(claim)
            claim.state = "waiting"
            claim.predicted_wait_s = None
            self._add_waiting(claim)
        claim.stopwatch.queue(self._clock.now_s(), self._kv_shortage.total_s())

    def leave(self, claim: Claim) -> None:
        """The request has ended."""
        with self._lock:
            if claim.state == "waiting":
                self._remove_waiting(claim)
            else:
                self._leave_row(claim)
            claim.state = "ended"

    def wait_s(self) -> float:
        """Return how long somebody behind all that waits would wait; 0 while that is unknown."""
        with self._lock:
            prefills_s, queue_s = self.estimates.work_s(self._num_prefill_tokens, 0, 1), self._work_s(self._waiting)
        if prefills_s is None or queue_s is None:
            return 0.0
        return self.estimates.unbiased_s(prefills_s + queue_s)

    # All below: the lock is held.

    def _wait(self, tenant: str, priority: int) -> Wait:
        num_tenants = len(self._waiting_by_tenant) + (tenant not in self._waiting_by_tenant)
        turns, now_s, age_s = Work(), self._clock.now_s(), 0.0
        for own_priority, line in self._waiting_by_tenant.get(tenant, {}).items():
            if own_priority <= priority:
                turns.num_requests += line.work.num_requests * num_tenants
                turns.num_uncached_tokens += line.work.num_uncached_tokens * num_tenants
                turns.num_output_tokens += line.work.num_output_tokens * num_tenants
                oldest_s = line.oldest_s()
                age_s = age_s if oldest_s is None else max(age_s, now_s - oldest_s)
        prefills_s = self.estimates.work_s(self._num_prefill_tokens, 0, 1)
        queue_s, turns_s = self._work_s(self._waiting), self._work_s(turns)
        if prefills_s is None or queue_s is None or turns_s is None:
            return Wait(None, age_s)
        wait_s = prefills_s + min(queue_s, turns_s)
        return Wait(wait_s, max(age_s, self.estimates.unbiased_s(wait_s)))

    def _work_s(self, before: Work) -> float | None:
        """Return the time until somebody behind `before` gets a row."""
        num_rows = self._config.max_running if self.has_free_blocks else max(1, self._num_running)
        # As many have to end as there are too many; each of them takes a mean output.
        num_ends = max(0, before.num_requests + 1 + self._num_running - num_rows)
        num_requests = before.num_requests
        mean_output = before.num_output_tokens / num_requests if num_requests else self.estimates.mean_output_tokens
        return self.estimates.work_s(before.num_uncached_tokens, num_ends * mean_output, self._num_running)

    def _add_waiting(self, claim: Claim) -> None:
        self._waiting.add(claim)
        self.num_preempted_waiting += claim.has_run
        self._waiting_by_tenant[claim.tenant][claim.priority].add(claim)

    def _remove_waiting(self, claim: Claim) -> None:
        self._waiting.remove(claim)
        self.num_preempted_waiting -= claim.has_run
        lines = self._waiting_by_tenant[claim.tenant]
        work = lines[claim.priority].work
        work.remove(claim)
        if not work.num_requests:
            del lines[claim.priority]
        if not lines:
            del self._waiting_by_tenant[claim.tenant]

    def _leave_row(self, claim: Claim) -> None:
        self._num_running -= 1
        if claim.state == "prefilling":
            self._num_prefill_tokens -= claim.num_uncached_tokens - claim.num_prefilled_tokens
        claim.num_prefilled_tokens = 0


def _queue_full(why: str, wait: Wait) -> QueueFull:
    retry_after_s = min(max(wait.expected_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
    return QueueFull(f"{why}; try again in {retry_after_s:.0f} s", retry_after_s=retry_after_s)
