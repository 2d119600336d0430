"""Live requests ordered by a key."""

import heapq
from typing import Generic, TypeVar

from engine.live_request import LiveRequest

Key = TypeVar("Key", float, tuple[int, int])

_SLACK = 64
"""Ended requests kept before the first clean-up."""


class RequestQueue(Generic[Key]):
    """Smallest key first. A request that ends while queued is skipped, and dropped for good by a later push.

    Push and pop cost O(log n); ended requests never make up much more than half of the memory.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, LiveRequest]] = []
        self._clean_up_at = _SLACK

    def push(self, key: Key, live: LiveRequest) -> None:
        """Add a request; equal keys leave in order of arrival."""
        heapq.heappush(self._heap, (key, live.arrival, live))
        if len(self._heap) > self._clean_up_at:
            self._heap = [entry for entry in self._heap if not entry[2].is_ended]
            heapq.heapify(self._heap)
            self._clean_up_at = 2 * len(self._heap) + _SLACK

    def peek(self) -> LiveRequest | None:
        """Return the first live request, leaving it queued."""
        entry = self._first()
        return entry[2] if entry is not None else None

    def peek_key(self) -> Key | None:
        """Return the first live request's key."""
        entry = self._first()
        return entry[0] if entry is not None else None

    def pop(self) -> LiveRequest:
        """Take the first live request out; one must exist."""
        entry = self._first()
        assert entry is not None, "pop from an empty queue"
        return heapq.heappop(self._heap)[2]

    def _first(self) -> tuple[Key, int, LiveRequest] | None:
        while self._heap and self._heap[0][2].is_ended:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None
