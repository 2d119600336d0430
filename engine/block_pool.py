"""Which KV blocks are free, referenced or cached. Block ids only: the tensors are on the ranks.

    free        holds nothing of use
    referenced  in the block table of one or more running requests
    cached      in no block table, but still holds a full block that its hash finds; evicted least recently used first

Every block is in exactly one of the three states, and every operation costs O(1) per block. A referenced block may be
published too: then other requests find and share it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

from core.errors import EaglerayError

BlockHash = bytes
"""Chained hash of a full block and all blocks before it; see engine.prefix_cache."""


class OutOfBlocks(EaglerayError):
    """Fewer blocks are free or cached than were asked for; the caller must make room first."""

    code = "out_of_blocks"


class BlockListener(Protocol):
    """Hears what the pool can no longer serve. Called on the engine thread; must not block or raise."""

    def on_evicted(self, block_hashes: Sequence[BlockHash]) -> None:
        """These hashes can no longer be found."""
        ...


class BlockPool:
    """A fixed number of KV blocks. Used by the engine thread only, but counts may be read from any thread."""

    def __init__(self, num_blocks: int, listener: BlockListener | None = None) -> None:
        self.num_blocks = num_blocks
        self._listener = listener
        self._free = list(range(num_blocks - 1, -1, -1))
        self._ref_counts = [0] * num_blocks
        # Keys in order of release: the first one is the least recently used. Not a plain dict, which finds its first
        # key by walking over all that were deleted before it.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing of use."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Unreferenced blocks that still hold a prefix."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: free ones, then cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_referenced(self) -> int:
        """Blocks in block tables."""
        return self.num_blocks - self.num_available

    def allocate(self, count: int) -> list[int]:
        """Return `count` blocks, referenced once; evicts cached blocks once none is free. Raises OutOfBlocks."""
        if count > self.num_available:
            raise OutOfBlocks(f"{count} KV blocks asked, {self.num_available} of {self.num_blocks} are available")
        shortage = count - len(self._free)
        if shortage > 0:
            self._evict(shortage)
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Add a reference to blocks that `find` returned; cached ones become referenced."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                del self._cached[block]
            self._ref_counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each block of one block table.

        The last block is released first, so that tails are evicted before the prefixes they hang on.
        """
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, f"block {block} was released more often than referenced"
            if self._ref_counts[block] == 0:
                if self._hash_of[block] is not None:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def find(self, block_hash: BlockHash) -> int | None:
        """Return the block that holds this content, if any. It stays as it is until it is shared."""
        return self._block_of.get(block_hash)

    def is_cached(self, block: int) -> bool:
        """Whether the block is unreferenced and still holds a prefix."""
        return block in self._cached

    def publish(self, blocks: Sequence[int], block_hashes: Sequence[BlockHash]) -> None:
        """Make referenced, fully written blocks findable.

        Content that another block already holds keeps that block: the duplicate becomes free when it is released.
        """
        for block, block_hash in zip(blocks, block_hashes, strict=True):
            assert self._ref_counts[block] > 0, f"block {block} was published without a reference"
            if block_hash not in self._block_of and self._hash_of[block] is None:
                self._block_of[block_hash] = block
                self._hash_of[block] = block_hash

    def forget(self, blocks: Sequence[int]) -> None:
        """Make referenced blocks impossible to find; they become free once nobody refers to them."""
        self._unname(block for block in blocks if self._hash_of[block] is not None)

    def check_integrity(self) -> None:
        """Check that every block is in exactly one state and that both indexes agree. Raises AssertionError."""
        free, cached = set(self._free), set(self._cached)
        referenced = {block for block, count in enumerate(self._ref_counts) if count > 0}
        assert len(free) == len(self._free), "a block is free twice"
        assert free | cached | referenced == set(range(self.num_blocks)), "a block is lost"
        assert len(free) + len(cached) + len(referenced) == self.num_blocks, "a block is in two states"
        assert all(count >= 0 for count in self._ref_counts), "a reference count is negative"
        names = {block: block_hash for block, block_hash in enumerate(self._hash_of) if block_hash is not None}
        assert cached <= names.keys(), "a cached block has no hash"
        assert not free & names.keys(), "a free block has a hash"
        assert self._block_of == {block_hash: block for block, block_hash in names.items()}, "indexes differ"

    def _evict(self, count: int) -> None:
        blocks = [self._cached.popitem(last=False)[0] for _ in range(count)]
        self._unname(blocks)
        self._free += blocks

    def _unname(self, blocks: Iterable[int]) -> None:
        """Make blocks that have a hash impossible to find."""
        evicted: list[BlockHash] = []
        for block in blocks:
            block_hash = self._hash_of[block]
            assert block_hash is not None, f"block {block} has no hash"
            self._hash_of[block] = None
            del self._block_of[block_hash]
            evicted.append(block_hash)
        if evicted and self._listener is not None:
            self._listener.on_evicted(evicted)
