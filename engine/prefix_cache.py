"""Finds KV blocks that already hold the beginning of a request.

A full block is named by blake2b-16 over (name of the block before it, its token ids as 32-bit little-endian integers);
the first block's parent is a hash of the request's salt. So equal names mean equal tokens from the first one on, under
equal salts, and looking a prefix up is one dictionary access per block.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from engine.block_pool import BlockHash, BlockListener, BlockPool

HASH_BYTES = 16
_TOKEN_BYTES = 4


class BlockHasher:
    """Names the full blocks of one growing sequence of tokens; append only."""

    def __init__(self, block_size: int, salt: str) -> None:
        self.salt = salt
        self._block_size = block_size
        self._root = blake2b(salt.encode(), digest_size=HASH_BYTES, person=b"salt").digest()
        self.hashes: list[BlockHash] = []
        """One per full block hashed so far, in order."""

    def extend(self, packed_tokens: bytes | bytearray, num_blocks: int) -> None:
        """Hash up to `num_blocks` full blocks of packed token ids, which must begin with the tokens hashed before."""
        size = self._block_size * _TOKEN_BYTES
        parent = self.hashes[-1] if self.hashes else self._root
        for offset in range(len(self.hashes) * size, num_blocks * size, size):
            parent = blake2b(parent + packed_tokens[offset : offset + size], digest_size=HASH_BYTES).digest()
            self.hashes.append(parent)


class PrefixListener(BlockListener, Protocol):
    """Hears which beginnings of prompts can be found. Called on the engine thread; must not block or raise."""

    def on_published(self, hasher: BlockHasher, packed_tokens: bytes | bytearray, first: int, end: int) -> None:
        """Blocks `first` to `end` (exclusive) of this sequence can now be found, if they could not before."""


class PrefixCache:
    """What the pool's blocks hold, looked up by content. Disabled, it finds and publishes nothing.

    Used by the engine thread, but for what says otherwise.
    """

    def __init__(
        self, pool: BlockPool, block_size: int, is_enabled: bool = True, listener: PrefixListener | None = None
    ) -> None:
        self._pool = pool
        self._block_size = block_size
        self._is_enabled = is_enabled
        self._listener = listener

    def hash_prompt(self, packed_tokens: bytes | bytearray, salt: str) -> BlockHasher:
        """Return what names the tokens' blocks, having hashed as many as `match` may look for; any thread."""
        hasher = BlockHasher(self._block_size, salt)
        if self._is_enabled:
            hasher.extend(packed_tokens, self._max_matched_blocks(packed_tokens))
        return hasher

    def num_cached_tokens(self, hasher: BlockHasher) -> int:
        """Return how many of the tokens hashed so far can be found now; any thread, as long as nobody hashes more."""
        if not self._is_enabled:
            return 0
        num_blocks = 0
        for block_hash in hasher.hashes:
            if self._pool.find(block_hash) is None:
                break
            num_blocks += 1
        return num_blocks * self._block_size

    def match(self, hasher: BlockHasher, packed_tokens: bytes | bytearray) -> list[int]:
        """Return the blocks that hold the longest known prefix of the tokens, unchanged and not yet shared.

        Never covers all tokens: the last one must be computed to sample the next.
        """
        if not self._is_enabled:
            return []
        max_blocks = self._max_matched_blocks(packed_tokens)
        hasher.extend(packed_tokens, max_blocks)
        found: list[int] = []
        for block_hash in hasher.hashes[:max_blocks]:
            block = self._pool.find(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def publish(
        self, hasher: BlockHasher, packed_tokens: bytes | bytearray, blocks: Sequence[int], first: int, end: int
    ) -> None:
        """Make blocks `first` to `end` (exclusive) of a block table findable. They must be full and committed."""
        if not self._is_enabled:
            return
        hasher.extend(packed_tokens, end)
        self._pool.publish(blocks[first:end], hasher.hashes[first:end])
        if self._listener is not None:
            self._listener.on_published(hasher, packed_tokens, first, end)

    def _max_matched_blocks(self, packed_tokens: bytes | bytearray) -> int:
        return (len(packed_tokens) // _TOKEN_BYTES - 1) // self._block_size
