"""The thread-safe side of the engine: accepts, refuses and cancels requests, and wakes the engine thread."""

import itertools
import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from core.clock import Clock
from core.errors import EaglerayError, ErrorInfo, InvalidRequest, QueueFull
from engine.admission import Admission
from engine.live_request import LiveRequest
from engine.prefix_cache import BlockHasher
from engine.request import EventSink, GenerationRequest
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
        self, admission: Admission, max_live: int, block_size: int, hashes_prompts: bool, clock: Clock
    ) -> None:
        self._admission = admission
        self._max_live = max_live
        self._block_size = block_size
        self._hashes_prompts = hashes_prompts
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

    def submit(self, request: GenerationRequest, sink: EventSink) -> None:
        """Accept a request. Raises InvalidRequest, ContextTooLong, QueueFull, or what `refuse` was told."""
        self._admission.check(request)
        # A long prompt takes milliseconds to hash, which the caller's thread has and the engine's has not.
        packed_tokens = pack_integers(request.token_ids)
        hasher = BlockHasher(self._block_size, request.cache_salt)
        if self._hashes_prompts:
            hasher.extend(packed_tokens, (len(request.token_ids) - 1) // self._block_size)
        max_length, stop_ids = self._admission.max_length(request), self._admission.stop_ids(request)
        deadline_at_s = None if request.deadline_s is None else self._clock.now_s() + request.deadline_s
        with self._lock:
            self._check_open(request.request_id)
            live = LiveRequest(
                request,
                sink,
                packed_tokens=packed_tokens,
                arrival=next(self._arrivals),
                deadline_at_s=deadline_at_s,
                max_length=max_length,
                stop_ids=stop_ids,
                hasher=hasher,
            )
            self._live[request.request_id] = live
            self._num_live_tokens += max_length
            self._new.append(live)
        self._wakeup.set()

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

    def _check_open(self, request_id: str) -> None:
        if self._refusal is not None:
            raise self._refusal.to_error()
        if request_id in self._live:
            raise InvalidRequest(f"request id {request_id!r} is in use; use a new one", param="request_id")
        if len(self._live) >= self._max_live:
            raise QueueFull(
                f"{len(self._live)} requests are running or waiting, which is the limit (max_running + max_waiting); "
                "try again later",
                retry_after_s=RETRY_AFTER_S,
            )


def _take(queue: deque[LiveRequest]) -> list[LiveRequest]:
    # Other threads append meanwhile; single deque operations are atomic.
    return [queue.popleft() for _ in range(len(queue))]
