"""What a group's prefix cache would hold after the prompts that were sent there, where the group does not say."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple


class CacheChange(NamedTuple):
    """Prefix keys that came into a cache and went out of it."""

    stored: list[int]
    removed: list[int]


class CacheModel:
    """A cache of prefix keys that evicts the least recently used."""

    def __init__(self, max_keys: int) -> None:
        """`max_keys`: as many spans of 64 tokens as the group has KV memory for."""
        self._max_keys = max_keys
        self._keys: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        """Keys held."""
        return len(self._keys)

    def place(self, keys: Iterable[int]) -> CacheChange:
        """Take in a prompt's keys, shortest beginning first; return what changed."""
        stored: list[int] = []
        # Longest first, so that a beginning is always used later than what hangs on it, and evicted later.
        for key in reversed(list(keys)):
            if key not in self._keys:
                stored.append(key)
            self._keys[key] = None
            self._keys.move_to_end(key)
        removed = [self._keys.popitem(last=False)[0] for _ in range(len(self._keys) - self._max_keys)]
        return CacheChange(stored[::-1], removed)
