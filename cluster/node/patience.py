"""Asking again until it works, with growing pauses, up to a limit, and not a moment longer than the node shall run."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from cluster.node.errors import BootFailed, NotYet, StopRequested
from core.clock import Clock, MonotonicClock

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Patience:
    """Waits for what is not there yet. Setting `stop` ends every wait."""

    def __init__(
        self, stop: threading.Event, clock: Clock | None = None, wait: Callable[[float], bool] | None = None
    ) -> None:
        """`wait(seconds)` returns whether a stop was asked for; tests replace it and the clock."""
        self._clock = clock or MonotonicClock()
        self._wait = wait or stop.wait

    def pause(self, seconds: float) -> None:
        """Wait. Raises StopRequested as soon as the node shall stop."""
        if self._wait(seconds):
            raise StopRequested

    def until(
        self, attempt: Callable[[], T], limit_s: float, *, first_pause_s: float = 1.0, longest_pause_s: float = 10.0
    ) -> T:
        """Return what `attempt` returns once it no longer raises NotYet; pauses double from the first to the longest.

        Raises BootFailed with the last reason when `limit_s` are over. Raises StopRequested.
        """
        started_s = self._clock.now_s()
        pause_s, told = first_pause_s, ""
        while True:
            try:
                return attempt()
            except NotYet as error:
                reason, waited_s = str(error), self._clock.now_s() - started_s
            if waited_s + pause_s > limit_s:
                raise BootFailed(f"{reason} (given up after {waited_s:.0f} s)")
            if reason != told:
                logger.info("waiting", extra={"reason": reason, "limit_s": limit_s})
                told = reason
            self.pause(pause_s)
            pause_s = min(pause_s * 2, longest_pause_s)
