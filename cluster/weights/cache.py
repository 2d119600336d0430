"""The folder of a machine in which fetched models are kept: who uses one, who fetches one, who has to go.

    models/DIGEST/      files in place, each whole
    manifests/DIGEST    which files make up the model
    partial/DIGEST/     files on their way
    locks/DIGEST.use    held, shared, by every process that uses the model; its time is when that began last
    locks/DIGEST.fetch  held by the process that fetches
    locks/space         held while room is made and taken

Locks are of the kernel (flock): they end with the process that holds them, however it ends.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cluster.weights.manifest import Manifest
from core.errors import CheckpointError

_HEADROOM_BYTES = 64 * 2**20
"""Left free on the disk."""


class Lease:
    """Keeps a model from being evicted until it is closed, or its process has ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Give it back. Idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class WeightsCache:
    """Any number of processes may have one on the same folder."""

    def __init__(self, root: Path, max_bytes: int | None = None) -> None:
        """Make the folder. Raises CheckpointError if it cannot be written."""
        self.root = root
        self._max_bytes = max_bytes
        try:
            for name in ("models", "manifests", "partial", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{root}: weights cannot be kept there ({error.strerror}); set weights.cache or EAGLERAY_WEIGHTS_CACHE"
            ) from None

    def folder(self, digest: str) -> Path:
        """Return where the model's files are, or will be."""
        return self.root / "models" / digest

    def partial_folder(self, digest: str) -> Path:
        """Return where they are on their way."""
        return self.root / "partial" / digest

    def lease(self, digest: str) -> Lease:
        """Keep the model from being evicted from now on; blocks while it is being evicted."""
        descriptor = self._open_lock(f"{digest}.use")
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(descriptor)
        return Lease(descriptor)

    def manifest(self, digest: str) -> Manifest | None:
        """Return which files make up a model that was fetched here, None if it was not."""
        try:
            return msgspec.json.decode((self.root / "manifests" / digest).read_bytes(), type=Manifest)
        except FileNotFoundError:
            return None

    def remember(self, manifest: Manifest) -> None:
        """Keep which files make up a model."""
        path = self.root / "manifests" / manifest.digest
        new = path.with_name(f"{path.name}.{os.getpid()}")
        new.write_bytes(msgspec.json.encode(manifest))
        new.rename(path)

    @contextmanager
    def fetching(self, digest: str) -> Iterator[bool]:
        """Yield whether this process is the one to fetch the model now; nobody else is then."""
        descriptor = self._open_lock(f"{digest}.fetch")
        try:
            yield _try_lock(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def making_room(self, num_bytes: int) -> Iterator[None]:
        """Have room for `num_bytes` more, which the body takes. Raises CheckpointError if there is not enough."""
        descriptor = self._open_lock("space")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._make_room(num_bytes)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, num_bytes: int) -> None:
        for digest in self._oldest_first():
            if self._room() >= num_bytes:
                return
            self._evict(digest)
        room = self._room()
        if room < num_bytes:
            limit = "" if self._max_bytes is None else f", weights.max_cache={self._max_bytes}"
            raise CheckpointError(
                f"{self.root}: the model needs {num_bytes} bytes more, and there is room for {max(0, room)} (models in "
                f"use are kept{limit}); use a larger disk or folder (EAGLERAY_WEIGHTS_CACHE), or a larger limit"
            )

    def _room(self) -> int:
        free = shutil.disk_usage(self.root).free - _HEADROOM_BYTES
        if self._max_bytes is None:
            return free
        used = sum(allocated_bytes(self.root / name) for name in ("models", "partial"))
        return min(free, self._max_bytes - used)

    def _oldest_first(self) -> list[str]:
        locks = [(path.stat().st_mtime, path.stem) for path in (self.root / "locks").glob("*.use")]
        return [digest for _, digest in sorted(locks) if self.folder(digest).exists() or self._is_partial(digest)]

    def _is_partial(self, digest: str) -> bool:
        return self.partial_folder(digest).exists()

    def _evict(self, digest: str) -> None:
        """Remove a model that nobody uses."""
        descriptor = self._open_lock(f"{digest}.use")
        try:
            if _try_lock(descriptor):
                (self.root / "manifests" / digest).unlink(missing_ok=True)
                shutil.rmtree(self.folder(digest), ignore_errors=True)
                shutil.rmtree(self.partial_folder(digest), ignore_errors=True)
        finally:
            os.close(descriptor)

    def _open_lock(self, name: str) -> int:
        try:
            return os.open(self.root / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CheckpointError(
                f"{self.root}: no lock can be made ({error.strerror}); set weights.cache or EAGLERAY_WEIGHTS_CACHE"
            ) from None


def allocated_bytes(path: Path) -> int:
    """Return what a file, or all files of a folder, take on the disk; 0 for what does not exist."""
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        try:
            total += file.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
