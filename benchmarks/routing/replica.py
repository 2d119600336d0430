"""One simulated model copy: continuous batching with chunked prefill, step by step in simulated time.

A step takes

    base + sequences * sequence_s + resident tokens * kv_token_s
         + sum of (chunk / prefill speed) * (1 + position / attention)

and its chunk is filled with prompts in order of arrival. A request enters when its prompt and its whole output fit into
KV memory. While nobody prefills, many decode steps are taken as one event, cut short when a request arrives.
"""

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.routing.events import EventLoop
from benchmarks.routing.kv_cache import KvCache
from benchmarks.routing.traces import BLOCK_TOKENS
from engine.request import EngineLoad
from engine.step_costs import StepCosts


@dataclass(frozen=True)
class ReplicaSpec:
    """What a model copy can do. The defaults are those of a dense 70B model on four 80 GB GPUs."""

    prefill_tokens_per_s: float = 12_000.0
    attention_tokens: float = 60_000.0
    """Context at which attention has doubled what a prompt token costs."""
    chunk_tokens: int = 1024
    base_s: float = 0.016
    sequence_s: float = 0.0001
    kv_token_s: float = 3.4e-8
    kv_tokens: int = 460_000
    tells_prefills: bool = False
    """Reports count prompts that are being computed as waiting, and queued tokens as resident. Engines do not."""

    @property
    def full_steps_tokens_per_s(self) -> float:
        """Prompt tokens a second while every step is full of them and nothing decodes."""
        return self.chunk_tokens / (self.base_s + self.chunk_tokens / self.prefill_tokens_per_s)

    @property
    def num_blocks(self) -> int:
        """KV memory in blocks."""
        return self.kv_tokens // BLOCK_TOKENS


class Attempt:
    """One request on one replica. Mutated by the replica alone."""

    __slots__ = (
        "block_ids",
        "index",
        "max_tokens",
        "num_cached",
        "num_output",
        "num_pinned",
        "num_private",
        "num_prompt",
        "position",
    )

    def __init__(
        self, index: int, num_prompt: int, num_output: int, max_tokens: int, block_ids: Sequence[int] = ()
    ) -> None:
        self.index = index
        """Of the request in the trace."""
        self.num_prompt = num_prompt
        self.num_output = num_output
        """Known to nobody but the replica, and to it only by reaching it."""
        self.max_tokens = max_tokens
        self.block_ids = block_ids
        """Of the prompt's full blocks."""
        self.num_cached = 0
        self.position = 0
        self.num_private = 0
        self.num_pinned = 0

    @property
    def num_uncached(self) -> int:
        """Prompt tokens still to be computed, as far as is known."""
        return self.num_prompt - self.position


class Listener(Protocol):
    """Hears what becomes of attempts, at the moment it happens."""

    def first_token(self, attempt: Attempt) -> None:
        """Take note that the attempt's prompt is computed."""
        ...

    def finished(self, attempt: Attempt) -> None:
        """Take note that the attempt's last token is out."""
        ...


class Replica:
    """Runs attempts. After `kill` it neither calls its listener nor takes anything."""

    def __init__(self, spec: ReplicaSpec, loop: EventLoop, listener: Listener, speed: float = 1.0) -> None:
        self._spec = spec
        self._loop = loop
        self._listener = listener
        self._speed = speed
        self._step_costs = StepCosts(
            spec.base_s / speed,
            1 / (spec.prefill_tokens_per_s * speed),
            spec.sequence_s / speed,
            spec.kv_token_s / speed,
        )
        self._cache = KvCache(spec.num_blocks)
        self._waiting: deque[Attempt] = deque()
        self._prefilling: Attempt | None = None
        self._prefilled: list[Attempt] = []
        self._decoding: list[tuple[int, int, Attempt]] = []
        """A heap by the step that makes the last token."""
        self._num_uncached = 0
        self._num_to_generate = 0
        """As far as requests allow; how soon they end is not known."""
        self._num_generated = 0
        self._num_prompt_tokens = 0
        """Of attempts that have begun, as the next."""
        self._num_cached_tokens = 0
        self._chunk = 0
        self._context = 0
        """Tokens that a decode step attends to."""
        self._num_steps = 0
        self._leap = 0
        """Decode steps under way as one event; 0 in a step with prefill, and when idle."""
        self._started_s = 0.0
        self._duration_s = 0.0
        """Of the event under way, since then."""
        self._is_busy = False
        self._event = 0
        self.busy_s = 0.0

    @property
    def num_waiting(self) -> int:
        """Attempts that have not begun."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Attempts that have begun and not ended."""
        return len(self._decoding) + len(self._prefilled) + (self._prefilling is not None)

    @property
    def num_cached_blocks(self) -> int:
        """What a drain would throw away."""
        return self._cache.num_cached

    def submit(self, attempt: Attempt) -> int:
        """Queue an attempt, which begins with the next step that has room; return the tokens of it to be computed."""
        # What is cached now is an estimate that the beginning of the prefill corrects.
        attempt.position = self._cached_tokens(attempt)
        num_uncached = attempt.num_uncached
        self._num_uncached += num_uncached
        self._num_to_generate += attempt.max_tokens
        self._waiting.append(attempt)
        if not self._is_busy:
            self._start_step()
        elif self._leap:
            self._cut_leap()
        return num_uncached

    def kill(self) -> None:
        """Stop for ever, in the middle of whatever is under way."""
        self._num_steps += self._leap_done()
        self._leap = 0
        self._event += 1
        self._is_busy = True

    def attempts(self) -> list[tuple[Attempt, int]]:
        """Return the attempts that are here and how many tokens of each are out."""
        num_steps = self._num_steps + self._leap_done()
        decoding = [(attempt, attempt.num_output - (last - num_steps)) for last, _, attempt in self._decoding]
        prefilling = [self._prefilling] if self._prefilling else []
        return decoding + [(attempt, 0) for attempt in (*self._prefilled, *prefilling, *self._waiting)]

    def load(self) -> EngineLoad:
        """Return what the replica says of itself."""
        num_done = self._leap_done()
        partial = self._prefilling.position if self._prefilling else 0
        num_kv_tokens = self._context + num_done * len(self._decoding) + partial
        num_told = self.num_running - len(self._decoding) if self._spec.tells_prefills else 0
        return EngineLoad(
            num_running=self.num_running - num_told,
            num_waiting=len(self._waiting) + num_told,
            num_outstanding_tokens=self._num_uncached + self._num_to_generate - num_done * len(self._decoding),
            num_blocks=self._spec.num_blocks,
            num_free_blocks=self._cache.num_free,
            num_cached_blocks=self._cache.num_cached,
            num_steps=self._num_steps + num_done,
            num_preemptions=0,
            num_generated_tokens=self._num_generated + num_done * len(self._decoding),
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_prompt_tokens=self._num_cached_tokens,
            num_uncached_tokens=self._num_uncached,
            num_kv_tokens=num_kv_tokens + (self._num_uncached if self._spec.tells_prefills else 0),
            max_step_tokens=self._spec.chunk_tokens,
            step_costs=self._step_costs,
            max_kv_tokens=self._spec.kv_tokens,
            wait_s=self._num_uncached / (self._spec.full_steps_tokens_per_s * self._speed),
        )

    def take_prefix_changes(self) -> dict[int, bool]:
        """Return the blocks that came (True) or went (False) since the last call."""
        return self._cache.take_changes()

    def _start_step(self) -> None:
        prefill_s = self._plan_prefill()
        self._is_busy = True
        self._started_s = self._loop.now_s
        if prefill_s:
            self._leap = 0
            self._schedule(self._decode_s(1) + prefill_s / self._speed)
        elif self._decoding:
            self._leap = max(1, self._decoding[0][0] - self._num_steps)
            self._schedule(self._decode_s(self._leap))
        else:
            self._is_busy = False

    def _schedule(self, duration_s: float) -> None:
        self._event += 1
        self._duration_s = duration_s
        self._loop.at(self._started_s + duration_s, self._end_step, self._event)

    def _end_step(self, event: int) -> None:
        if event != self._event:
            return  # Cut short, or the replica is gone.
        num_steps = self._leap or 1
        self._leap = 0
        self._num_steps += num_steps
        num_generated = num_steps * len(self._decoding)
        self._context += num_generated
        self._num_generated += num_generated
        self._num_to_generate -= num_generated
        self._num_uncached -= self._chunk
        self._chunk = 0
        self.busy_s += self._loop.now_s - self._started_s
        self._start_decoding()
        while self._decoding and self._decoding[0][0] <= self._num_steps:
            _, _, attempt = heapq.heappop(self._decoding)
            self._finish(attempt)
        self._start_step()

    def _plan_prefill(self) -> float:
        """Fill the step's chunk in order of arrival; return the seconds that takes at full speed."""
        seconds = 0.0
        while self._chunk < self._spec.chunk_tokens and (attempt := self._prefilling or self._admit()):
            num_tokens = min(self._spec.chunk_tokens - self._chunk, attempt.num_uncached)
            slowed = 1 + attempt.position / self._spec.attention_tokens
            seconds += num_tokens / self._spec.prefill_tokens_per_s * slowed
            self._chunk += num_tokens
            attempt.position += num_tokens
            self._prefilling = attempt if attempt.num_uncached else None
            if not attempt.num_uncached:
                self._prefilled.append(attempt)
        return seconds

    def _admit(self) -> Attempt | None:
        if not self._waiting:
            return None
        attempt = self._waiting[0]
        num_cached = self._cached_tokens(attempt)
        matched = attempt.block_ids[: num_cached // BLOCK_TOKENS]
        num_private = -(-(attempt.num_prompt + attempt.num_output) // BLOCK_TOKENS) - len(matched)
        if self.num_running and not self._cache.has_room(num_private, matched):
            return None
        self._waiting.popleft()
        self._cache.enter(num_private, matched)
        attempt.num_private, attempt.num_pinned = num_private, len(matched)
        self._num_uncached -= num_cached - attempt.position
        self._num_prompt_tokens += attempt.num_prompt
        self._num_cached_tokens += num_cached
        attempt.position = attempt.num_cached = num_cached
        return attempt

    def _cached_tokens(self, attempt: Attempt) -> int:
        # The last token is always computed: its output is what decoding begins with.
        return min(self._cache.match(attempt.block_ids), (attempt.num_prompt - 1) // BLOCK_TOKENS) * BLOCK_TOKENS

    def _start_decoding(self) -> None:
        for attempt in self._prefilled:
            computed = attempt.block_ids[attempt.num_pinned :]
            self._cache.share(computed)
            attempt.num_pinned += len(computed)
            attempt.num_private -= len(computed)
            self._context += attempt.num_prompt
            self._num_to_generate -= 1
            self._num_generated += 1
            heapq.heappush(self._decoding, (self._num_steps + attempt.num_output - 1, attempt.index, attempt))
            self._listener.first_token(attempt)
        self._prefilled.clear()

    def _finish(self, attempt: Attempt) -> None:
        self._context -= attempt.num_prompt + attempt.num_output - 1
        self._num_to_generate -= attempt.max_tokens - attempt.num_output
        self._cache.leave(attempt.num_private, attempt.block_ids[: attempt.num_pinned])
        self._listener.finished(attempt)

    def _decode_s(self, num_steps: int) -> float:
        """Return the time of decode steps in a row; the context grows by a token a request with each."""
        spec, num_sequences = self._spec, len(self._decoding)
        first_s = spec.base_s + spec.sequence_s * num_sequences + spec.kv_token_s * self._context
        growth_s = spec.kv_token_s * num_sequences * num_steps * (num_steps - 1) / 2
        return (num_steps * first_s + growth_s) / self._speed

    def _cut_leap(self) -> None:
        """End the leap with the step that is under way."""
        elapsed_s = self._loop.now_s - self._started_s
        num_steps = 1 + bisect_left(range(1, self._leap), elapsed_s, key=self._decode_s)
        if num_steps < self._leap:
            self._leap = num_steps
            self._schedule(self._decode_s(num_steps))

    def _leap_done(self) -> int:
        """Return the finished steps of the leap under way, to within one."""
        if not self._leap:
            return 0
        return min(self._leap - 1, int(self._leap * (self._loop.now_s - self._started_s) / self._duration_s))
