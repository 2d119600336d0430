"""Live requests in order: by a key, and by whose turn it is."""

import heapq
from typing import Generic, TypeVar

from engine.fair_shares import FairShares
from engine.live_request import LiveRequest

Key = TypeVar("Key", float, tuple[float, int])

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


class WaitingQueue:
    """Who gets the next free row: the tenant that was given least, and of its requests the first in their own order.

    A tenant's turn is worked out once per admission, not per step. With one tenant, all is in the requests' order.
    """

    def __init__(self) -> None:
        self._queues: dict[str, RequestQueue[tuple[float, int]]] = {}
        self._shares = FairShares()
        self._next: LiveRequest | None = None
        """Whose turn it is; None when that has to be worked out."""

    def push(self, live: LiveRequest) -> None:
        """Add a request."""
        tenant = live.claim.tenant
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = RequestQueue()
        if queue.peek() is None:
            self._shares.join(tenant)
        queue.push(live.order, live)
        self._next = None

    def peek(self) -> LiveRequest | None:
        """Return the request whose turn it is, leaving it queued."""
        if self._next is None or self._next.is_ended:
            self._next = self._choose()
        return self._next

    def pop(self) -> LiveRequest:
        """Take it out; there must be one."""
        live = self.peek()
        assert live is not None, "pop from an empty queue"
        self._shares.serve(live.claim.tenant)
        self._queues[live.claim.tenant].pop()
        self._next = None
        return live

    def charge(self, live: LiveRequest, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """Have what a request is given count for its tenant's next turn; negative: what it did not use after all."""
        self._shares.charge(live.claim.tenant, num_prompt_tokens, num_output_tokens)
        self._next = None

    def _choose(self) -> LiveRequest | None:
        if not self._queues:
            return None
        heads: list[LiveRequest] = []
        for tenant, queue in list(self._queues.items()):
            head = queue.peek()
            if head is None:
                del self._queues[tenant]
            else:
                heads.append(head)
        return min(heads, key=self._turn, default=None)

    def _turn(self, live: LiveRequest) -> tuple[float, tuple[float, int]]:
        return self._shares.position(live.claim.tenant), live.order
