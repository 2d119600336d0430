"""KV memory of a simulated replica: blocks in use, and blocks kept because another prompt may begin with them."""

from collections import OrderedDict
from collections.abc import Sequence


class KvCache:
    """Counts blocks. Shared ones have an id and stay, least recently used last to be missed, until room is needed.

    A request pins the shared blocks it reads, and holds private blocks for the rest of its prompt and its output. A
    parent is pinned by whoever pins its child and let go after it, so what is evicted is always the end of a chain.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_private = 0
        self._pins: dict[int, int] = {}
        self._unpinned: OrderedDict[int, None] = OrderedDict()
        self._changes: dict[int, bool] = {}

    @property
    def num_cached(self) -> int:
        """Shared blocks that no request uses now."""
        return len(self._unpinned)

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return max(0, self.num_blocks - self._num_used - len(self._unpinned))

    def match(self, block_ids: Sequence[int]) -> int:
        """Return how many of the leading blocks are here."""
        for index, block_id in enumerate(block_ids):
            if block_id not in self._pins and block_id not in self._unpinned:
                return index
        return len(block_ids)

    def has_room(self, num_private: int, matched: Sequence[int]) -> bool:
        """Whether a request may enter without taking blocks from another request."""
        num_woken = sum(block_id not in self._pins for block_id in matched)
        return self._num_used + num_private + num_woken <= self.num_blocks

    def enter(self, num_private: int, matched: Sequence[int]) -> None:
        """Pin `matched` (all of them are here) and take private blocks; evicts what is in the way."""
        for block_id in matched:
            self._pin(block_id)
        self._num_private += num_private
        self._evict()

    def share(self, block_ids: Sequence[int]) -> None:
        """Turn private blocks of a request into shared ones that it pins, now that they are computed."""
        self._num_private -= len(block_ids)
        for block_id in block_ids:
            self._pin(block_id)

    def leave(self, num_private: int, pinned: Sequence[int]) -> None:
        """Give back a request's private blocks and let go of what it pinned."""
        self._num_private -= num_private
        for block_id in reversed(pinned):
            self._pins[block_id] -= 1
            if not self._pins[block_id]:
                del self._pins[block_id]
                self._unpinned[block_id] = None
        self._evict()

    def take_changes(self) -> dict[int, bool]:
        """Return the blocks that came (True) or went (False) since the last call."""
        changes, self._changes = self._changes, {}
        return changes

    @property
    def _num_used(self) -> int:
        return self._num_private + len(self._pins)

    def _pin(self, block_id: int) -> None:
        if block_id in self._pins:
            self._pins[block_id] += 1
            return
        self._pins[block_id] = 1
        if block_id in self._unpinned:
            del self._unpinned[block_id]
        else:
            self._changes[block_id] = True

    def _evict(self) -> None:
        while self._unpinned and self._num_used + len(self._unpinned) > self.num_blocks:
            block_id, _ = self._unpinned.popitem(last=False)
            self._changes[block_id] = False
