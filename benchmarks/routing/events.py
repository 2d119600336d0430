"""Simulated time: calls happen in the order of their times, equal times in the order they were asked for."""

import heapq
from collections.abc import Callable


class EventLoop:
    """A clock that jumps from one event to the next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[int], object], int]] = []
        self._num_pushed = 0

    def at(self, at_s: float, call: Callable[[int], object], argument: int = 0) -> None:
        """Call `call(argument)` when the clock reads `at_s`; a time already past means now."""
        self._num_pushed += 1
        heapq.heappush(self._events, (at_s, self._num_pushed, call, argument))

    def run(self, is_done: Callable[[], bool]) -> None:
        """Run events until `is_done` or none is left."""
        events = self._events
        while events and not is_done():
            at_s, _, call, argument = heapq.heappop(events)
            self.now_s = max(self.now_s, at_s)
            call(argument)


class SimulatedClock:
    """The loop's time, as a `core.clock.Clock`."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        """Return simulated seconds."""
        return self._loop.now_s
