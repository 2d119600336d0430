"""Names the beginnings of a prompt for routers: which group has already computed most of it?

A key stands for every token up to the end of a span of 64 tokens, and for the salt. It is a chained 64-bit xxh3, a few
times cheaper than the block hashes by which a group finds its own KV blocks. Two beginnings with one key cost a request
a detour and nothing else, for a group never shares KV blocks by these keys.
"""

from xxhash import xxh3_64_intdigest

SPAN_TOKENS = 64
"""Tokens per key; a multiple of every KV block size."""

_TOKEN_BYTES = 4
SPAN_BYTES = SPAN_TOKENS * _TOKEN_BYTES


def prefix_keys(packed_tokens: bytes | bytearray, salt: str) -> list[int]:
    """Return one key per full span of packed token ids (32-bit little-endian), first span first."""
    view = memoryview(packed_tokens)
    key = root_key(salt)
    keys: list[int] = []
    for end in range(SPAN_BYTES, len(view) + 1, SPAN_BYTES):
        key = next_key(key, view[end - SPAN_BYTES : end])
        keys.append(key)
    return keys


def root_key(salt: str) -> int:
    """Return what the first span of a prompt hangs on."""
    return xxh3_64_intdigest(salt.encode())


def next_key(parent: int, packed_span: bytes | bytearray | memoryview) -> int:
    """Return the key of the span after `parent`, which is the span's before it or the root's."""
    return xxh3_64_intdigest(parent.to_bytes(8, "little") + packed_span)
