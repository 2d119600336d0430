"""Times requests in the engine: the clock is read when something changes, never for a token."""

from typing import Literal

import msgspec

from core.clock import Clock
from engine.request_timings import RequestTimings, StayTimes

MAX_STAYS = 16
"""A request that is preempted more often has its later stays counted into the last one."""


class Stopwatch:
    """Runs from a request's acceptance to its end; each moment belongs to one phase of one stay."""

    __slots__ = ("_began_s", "_kv_wait_before_s", "_phase", "_stays", "has_news")

    def __init__(self, now_s: float) -> None:
        self._stays = [StayTimes()]
        self._phase: Literal["queued", "prefill", "decode"] = "queued"
        self._began_s = now_s
        self._kv_wait_before_s = 0.0
        self.has_news = False
        """Whether a prefill has ended since the times were read."""

    def queue(self, now_s: float, kv_wait_s: float) -> None:
        """The request waits from now on. `kv_wait_s` is a total that grows while KV blocks are what is lacking."""
        if self._phase != "queued":
            self._lap(now_s)
            self._phase = "queued"
            if len(self._stays) < MAX_STAYS:
                self._stays.append(StayTimes())
        self._kv_wait_before_s = kv_wait_s

    def start(self, now_s: float, kv_wait_s: float, num_tokens: int, num_cached_tokens: int) -> None:
        """The request has a row; `kv_wait_s` is that total now."""
        self._lap(now_s)
        stay = self._stays[-1]
        stay.kv_wait_s += max(0.0, min(kv_wait_s - self._kv_wait_before_s, stay.queued_s))
        stay.num_tokens, stay.num_cached_tokens = num_tokens, num_cached_tokens
        self._phase = "prefill"

    def first_token(self, now_s: float) -> None:
        """The prefill is over."""
        self._lap(now_s)
        self._phase = "decode"
        self.has_news = True

    def read(self, now_s: float) -> RequestTimings:
        """Return the times so far."""
        self._lap(now_s)
        self.has_news = False
        return RequestTimings([msgspec.structs.replace(stay) for stay in self._stays])

    def _lap(self, now_s: float) -> None:
        stay, seconds = self._stays[-1], now_s - self._began_s
        self._began_s = now_s
        if self._phase == "queued":
            stay.queued_s += seconds
        elif self._phase == "prefill":
            stay.prefill_s += seconds
        else:
            stay.decode_s += seconds


class Shortage:
    """Adds up the time in which something is lacking."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._before_s = 0.0
        self._since_s: float | None = None

    def note(self, is_short: bool) -> None:
        """From now on it is lacking, or not."""
        if is_short and self._since_s is None:
            self._since_s = self._clock.now_s()
        elif not is_short and self._since_s is not None:
            self._before_s, self._since_s = self.total_s(), None

    def total_s(self) -> float:
        """Return how long it has been lacking up to now."""
        since_s = self._since_s  # once, for another thread may look while this one notes
        return self._before_s if since_s is None else self._before_s + self._clock.now_s() - since_s
