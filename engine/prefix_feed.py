"""Tells routers which beginnings of prompts a model copy can serve from its KV blocks.

The pool knows blocks by names of its own; routers know spans of 64 tokens by their prefix keys. A span counts as stored
from the moment its last block can be found until that block is evicted, for a cache evicts tails before the prefixes
they hang on.

What changed is kept as the latest state of every changed key. So news is never longer than what changed, nothing is
told that was undone meanwhile, and a snapshot taken at any time agrees with the news that follows it.
"""

import itertools
import secrets
import threading
from collections.abc import Callable, Sequence

import msgspec

from core.progress import Progress
from engine.block_pool import BlockHash
from engine.config import EngineConfig
from engine.engine import Engine, start_engine
from engine.prefix_cache import BlockHasher
from engine.prefix_keys import SPAN_BYTES, SPAN_TOKENS, next_key, root_key
from engine.ranks import RankPool
from parallel.checkpoint.source import Locate, locate_checkpoint

MAX_CHANGES = 4096
"""Changed keys that are kept for the next news (37 kB on the wire); past it there is a gap instead."""

MAX_SNAPSHOT_KEYS = 262_144
"""Keys a snapshot may hold (2.4 MB on the wire). Those stored first, on which others hang, are told."""


class PrefixNews(msgspec.Struct, frozen=True, array_like=True):
    """What a group can serve from its cache, as prefix keys (see `engine.prefix_keys`).

    A snapshot is all there is and replaces what was known. Anything else is what changed since the news with the
    sequence number before: whoever missed that one, or knows another epoch, must ask for a snapshot.
    """

    epoch: int
    """Of the cache; caches of different epochs have nothing in common."""
    sequence: int
    is_snapshot: bool
    stored: list[int]
    """Beginnings before what hangs on them, in a snapshot."""
    removed: list[int]


class PrefixFeed:
    """A `PrefixListener` of one engine's cache. Its `on_*` are for the engine thread, the rest for any thread.

    News is for one consumer, who passes it on; a second one would see gaps.
    """

    def __init__(
        self, block_size: int, *, max_changes: int = MAX_CHANGES, max_snapshot_keys: int = MAX_SNAPSHOT_KEYS
    ) -> None:
        assert SPAN_TOKENS % block_size == 0, "a span is a whole number of blocks"
        self._blocks_per_span = SPAN_TOKENS // block_size
        self._max_changes = max_changes
        self._max_snapshot_keys = max_snapshot_keys
        self._epoch = secrets.randbits(63)
        # Guards all below. Held for microseconds, or while a snapshot is copied.
        self._lock = threading.Lock()
        self._key_of: dict[BlockHash, int] = {}
        self._changes: dict[int, bool] = {}
        self._has_gap = False
        self._sequence = 0

    def on_published(self, hasher: BlockHasher, packed_tokens: bytes | bytearray, first: int, end: int) -> None:
        """Take in that blocks `first` to `end` (exclusive) of a sequence can be found."""
        size = self._blocks_per_span
        first_span, end_span = first // size, end // size
        if first_span == end_span:
            return
        with self._lock:
            for span in range(first_span, end_span):
                self._store(hasher, packed_tokens, span)
            self._bound_changes()

    def on_evicted(self, block_hashes: Sequence[BlockHash]) -> None:
        """Take in that these blocks can no longer be found."""
        with self._lock:
            for block_hash in block_hashes:
                key = self._key_of.pop(block_hash, None)
                if key is not None:
                    self._changes[key] = False
            self._bound_changes()

    def take_news(self) -> PrefixNews | None:
        """Return what changed since the last call, None if nothing did.

        After more changes than are kept it names none, and its sequence number shows the gap.
        """
        with self._lock:
            if not self._changes and not self._has_gap:
                return None
            changes, self._changes = self._changes, {}
            self._sequence += 1 + self._has_gap
            self._has_gap = False
            sequence = self._sequence
        stored = [key for key, is_stored in changes.items() if is_stored]
        removed = [key for key, is_stored in changes.items() if not is_stored]
        return PrefixNews(self._epoch, sequence, False, stored, removed)

    def snapshot(self) -> PrefixNews:
        """Return all that is stored, as the news that were taken last would have left it or later."""
        with self._lock:
            stored = list(itertools.islice(self._key_of.values(), self._max_snapshot_keys))
            return PrefixNews(self._epoch, self._sequence, True, stored, [])

    def _store(self, hasher: BlockHasher, packed_tokens: bytes | bytearray, span: int) -> None:
        size = self._blocks_per_span
        block_hash = hasher.hashes[(span + 1) * size - 1]
        if block_hash in self._key_of:
            return
        parent = root_key(hasher.salt) if span == 0 else self._key_of.get(hasher.hashes[span * size - 1])
        if parent is None:
            return  # what it hangs on was evicted: nobody can find it either
        key = next_key(parent, packed_tokens[span * SPAN_BYTES : (span + 1) * SPAN_BYTES])
        self._key_of[block_hash] = key
        self._changes[key] = True

    def _bound_changes(self) -> None:
        if len(self._changes) > self._max_changes:
            self._changes.clear()
            self._has_gap = True


def start_fed_engine(
    config: EngineConfig,
    ranks: RankPool,
    on_progress: Callable[[Progress], None],
    locate: Locate = locate_checkpoint,
) -> Engine:
    """Do what `start_engine` does, for a copy that routers are to know the cache of. Raises StartupError."""
    feed = PrefixFeed(config.cache.block_size) if config.cache.prefix_caching else None
    return start_engine(config, ranks, on_progress, feed, locate)
