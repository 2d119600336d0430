"""Checksums of files that arrive in parts, in any order. Those of S3's CRC kinds need no second look at the file."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.weights.store import Checksum, ChecksumKind


class Crc(NamedTuple):
    """One of S3's cyclic checksums."""

    num_bytes: int
    update: Callable[[Any, int], int]
    """(bytes-like data, checksum of what came before it) -> checksum of both."""
    combine: Callable[[int, int, int], int]
    """(checksum of the first, of the second, bytes of the second) -> checksum of both."""


def find_crc(kind: ChecksumKind | None) -> Crc | None:
    """Return how to compute it part by part, None for other kinds and where AWS's library is not installed."""
    try:
        from awscrt import checksums
    except ImportError:
        return None
    match kind:
        case "crc32":
            return Crc(4, checksums.crc32, checksums.combine_crc32)
        case "crc32c":
            return Crc(4, checksums.crc32c, checksums.combine_crc32c)
        case "crc64nvme":
            return Crc(8, checksums.crc64nvme, checksums.combine_crc64nvme)
        case _:
            return None


def combined(crc: Crc, parts: Sequence[tuple[int, int]]) -> bytes:
    """Return the checksum of the parts in a row, each given as (checksum, bytes)."""
    total = 0
    for checksum, num_bytes in parts:
        total = crc.combine(total, checksum, num_bytes)
    return total.to_bytes(crc.num_bytes, "big")


def matches_file(checksum: Checksum, path: Path) -> bool | None:
    """Return whether a file's content has this checksum, None for kinds that are not computed from files; reads it."""
    if checksum.kind not in ("sha256", "md5"):
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, checksum.kind).digest() == checksum.value
