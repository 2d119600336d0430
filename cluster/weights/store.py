"""What fetching needs of an object store."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol

from core.errors import ReplicaFailed

ChecksumKind = Literal["crc32", "crc32c", "crc64nvme", "sha256", "md5"]


class TransferBroken(ReplicaFailed):
    """The store or the way to it failed; the same call may work when it is tried again."""


class StoredObject(NamedTuple):
    """An object as a listing shows it."""

    key: str
    num_bytes: int
    etag: str
    """Without quotes. Another content has another one."""


class Checksum(NamedTuple):
    """Of a whole object."""

    kind: ChecksumKind
    value: bytes
    """Big-endian, as the store writes it."""


class Stream(Protocol):
    """Bytes on their way."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill a part of `buffer`, return how many bytes; 0 at the end. Raises TransferBroken."""
        ...


class ObjectStore(Protocol):
    """One bucket. Any thread. Methods raise CheckpointError for what cannot work, TransferBroken for what may."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield every object whose key begins so."""
        ...

    def describe(self, key: str) -> StoredObject:
        """Return one object."""
        ...

    def checksum(self, stored: StoredObject) -> Checksum | None:
        """Return what the store knows of the object's content beyond its size, None if that is nothing."""
        ...

    def read(self, stored: StoredObject, start: int, end: int) -> AbstractContextManager[Stream]:
        """Open bytes `start` to `end` (exclusive), of this very content: another is refused with ReplicaFailed."""
        ...
