"""The thread-safe side of the engine: accepts, refuses and cancels requests, and wakes the engine thread."""

import itertools
import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from core.clock import Clock
from core.errors import EaglerayError, ErrorInfo, InvalidRequest
from engine.admission import Admission
from engine.backlog import Backlog, Wait
from engine.config import SchedulerConfig
from engine.live_request import LiveRequest
from engine.prefix_cache import PrefixCache
from engine.request import EventSink, GenerationRequest, Placement
from parallel.plan import pack_integers

RETRY_AFTER_S = 1.0
"""What a refused caller is told to wait: about the time in which a busy engine finishes something."""


class LiveTotals(NamedTuple):
    """Sums over all accepted requests that have not ended."""

    num_requests: int
    num_tokens: int
    """Prompt and output at full length."""


class Intake:
    """Knows every live request. What takes, forgets and sleeps is for the engine thread, the rest for any thread."""

    def __init__(
        self,
        admission: Admission,
        backlog: Backlog,
        config: SchedulerConfig,
        prefix_cache: PrefixCache,
        clock: Clock,
    ) -> None:
        self._admission = admission
        self._backlog = backlog
        self._config = config
        self._prefix_cache = prefix_cache
        self._clock = clock
        self._arrivals = itertools.count()
        self._wakeup = threading.Event()
        # Guards all below. Never held while foreign code is called.
        self._lock = threading.Lock()
        self._live: dict[str, LiveRequest] = {}
        self._num_live_tokens = 0
        self._new: deque[LiveRequest] = deque()
        self._cancelled: deque[LiveRequest] = deque()
        self._refusal: ErrorInfo | None = None

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        """Accept a request; return what it adds to the work.

        Raises InvalidRequest, ContextTooLong, QueueFull, or what `refuse` was told.
        """
        self._admission.check(request)
        max_length, stop_ids = self._admission.max_length(request), self._admission.stop_ids(request)
        with self._lock:
            # Before anything that costs time: who is overloaded must refuse cheaply.
            self._check_open(request, max_length)
        # A long prompt takes milliseconds to hash, which the caller's thread has and the engine's has not.
        packed_tokens = pack_integers(request.token_ids)
        hasher = self._prefix_cache.hash_prompt(packed_tokens, request.cache_salt)
        num_cached_tokens = self._prefix_cache.num_cached_tokens(hasher)
        with self._lock:
            wait = self._check_open(request, max_length)
            now_s, num_left = self._clock.now_s(), max_length - len(request.token_ids)
            deadline_at_s = None if request.deadline_s is None else now_s + request.deadline_s
            live = LiveRequest(
                request,
                sink,
                packed_tokens=packed_tokens,
                arrival=next(self._arrivals),
                due_s=self._due_s(request, now_s),
                deadline_at_s=deadline_at_s,
                latest_start_s=self._latest_start_s(request, num_left, deadline_at_s),
                max_length=max_length,
                stop_ids=stop_ids,
                hasher=hasher,
                claim=self._backlog.enter(request, num_left, wait, num_cached_tokens),
            )
            self._live[request.request_id] = live
            self._num_live_tokens += max_length
            self._new.append(live)
        self._wakeup.set()
        num_tokens = len(request.token_ids)
        return Placement(num_tokens - num_cached_tokens, num_tokens, num_left)

    def cancel(self, request_id: str) -> None:
        """Have a live request cancelled; others are ignored."""
        with self._lock:
            live = self._live.get(request_id)
            if live is not None:
                self._cancelled.append(live)
        self._wakeup.set()

    def refuse(self, error: EaglerayError) -> None:
        """Refuse every later request with `error`."""
        with self._lock:
            self._refusal = ErrorInfo.of(error)

    def wake(self) -> None:
        """End the engine thread's sleep, or its next one."""
        self._wakeup.set()

    def live(self) -> list[LiveRequest]:
        """Return every accepted request that has not ended, in order of arrival."""
        with self._lock:
            return list(self._live.values())

    def totals(self) -> LiveTotals:
        """Return how much was accepted and has not ended."""
        with self._lock:
            return LiveTotals(len(self._live), self._num_live_tokens)

    def sleep(self, timeout_s: float) -> bool:
        """Block until something happened since the last call; return whether it did within `timeout_s`.

        What it was is found by the `take_*` calls.
        """
        is_awake = self._wakeup.wait(timeout_s)
        self._wakeup.clear()
        return is_awake

    @property
    def has_orders(self) -> bool:
        """Whether `take_new` or `take_cancelled` would return anything."""
        return bool(self._new or self._cancelled)

    def take_new(self) -> list[LiveRequest]:
        """Return requests accepted since the last call. Call before `take_cancelled`, which may name them."""
        return _take(self._new)

    def take_cancelled(self) -> list[LiveRequest]:
        """Return requests to cancel; some may have ended meanwhile."""
        return _take(self._cancelled)

    def forget(self, ended: Iterable[LiveRequest]) -> None:
        """Let go of requests that had their terminal event; their ids may be used again."""
        with self._lock:
            for live in ended:
                del self._live[live.request.request_id]
                self._num_live_tokens -= live.max_length

    def _check_open(self, request: GenerationRequest, max_length: int) -> Wait:
        """Return how long the request would wait. Raises what `submit` does, but for wrong requests."""
        if self._refusal is not None:
            raise self._refusal.to_error()
        if request.request_id in self._live:
            raise InvalidRequest(f"request id {request.request_id!r} is in use; use a new one", param="request_id")
        if len(self._live) >= self._config.max_running + self._config.max_waiting:
            raise self._backlog.full(
                f"{len(self._live)} requests are running or waiting; the limit is max_running + max_waiting"
            )
        return self._backlog.check(request, max_length - len(request.token_ids))

    def _due_s(self, request: GenerationRequest, now_s: float) -> float:
        """Return when it is the request's turn, so to speak: who comes later by a priority's worth is not before it."""
        due_s = now_s - request.waited_s + request.priority * self._config.priority_step_s
        # A stream that has begun goes before all that have not and were let in before.
        return due_s - self._config.max_wait_s if request.is_resumed else due_s

    def _latest_start_s(self, request: GenerationRequest, num_left: int, deadline_at_s: float | None) -> float | None:
        if deadline_at_s is None or request.is_resumed:
            return deadline_at_s
        return deadline_at_s - self._backlog.estimates.least_s(request, num_left)


def _take(queue: deque[LiveRequest]) -> list[LiveRequest]:
    # Other threads append meanwhile; single deque operations are atomic.
    return [queue.popleft() for _ in range(len(queue))]
