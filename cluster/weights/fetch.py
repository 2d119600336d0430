"""Files from an object store to a folder: many ranges at once, each straight to its place on the disk."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple, TypeVar

from cluster.weights.checksums import Crc, combined, find_crc, matches_file
from cluster.weights.manifest import RemoteFile
from cluster.weights.partial import Part, PartialFile
from cluster.weights.store import Checksum, ObjectStore, TransferBroken
from core.errors import ReplicaFailed

logger = logging.getLogger(__name__)

T = TypeVar("T")

OnBytes = Callable[[int, int, str], None]
"""Gets bytes done, bytes in total, and the file at hand; called by the thread that fetches."""

_BUFFER_BYTES = 2**20
_REPORT_INTERVAL_S = 0.2
_PAUSES_S = (0.2, 1.0, 3.0, 8.0)
"""Before each further try of what broke; after the last one the fetch fails, and what is there stays."""


class Transfer(NamedTuple):
    """One file on its way."""

    file: RemoteFile
    partial: PartialFile
    target: Path


class Stopped(Exception):
    """The fetch was told to stop, or another part of it has failed."""


class Fetch:
    """One fetch of some files. `run` once."""

    def __init__(self, store: ObjectStore, num_streams: int, on_bytes: OnBytes, stop: threading.Event) -> None:
        """Setting `stop` ends every pause and, soon, the fetch."""
        self._store = store
        self._num_streams = num_streams
        self._on_bytes = on_bytes
        self._stop = stop
        # Of this fetch alone: whoever tries again after a failure hands in the same `stop`.
        self._has_failed = threading.Event()
        self._lock = threading.Lock()
        # Guarded by the lock: bytes that are there, and of which file the last ones were.
        self._num_done = 0
        self._latest = ""
        self._num_total = 0

    def run(self, transfers: Sequence[Transfer]) -> None:
        """Have every file at its target, whole and verified; blocks. What is there already is not fetched again.

        Raises CheckpointError, ReplicaFailed for what may work later, OSError, Stopped.
        """
        self._num_total = sum(transfer.file.num_bytes for transfer in transfers)
        self._num_done = sum(transfer.partial.num_bytes_there for transfer in transfers)
        with ThreadPoolExecutor(self._num_streams, thread_name_prefix="weights") as pool:
            try:
                asked = [pool.submit(self._patiently, self._checksum_of(transfer)) for transfer in transfers]
                known = self._results(asked)
                arrivals = [Arrival(*pair) for pair in zip(transfers, known, strict=True)]
                self._results([pool.submit(self._fetch, *work) for arrival in arrivals for work in arrival.work()])
            except BaseException:
                self._has_failed.set()
                raise

    def _checksum_of(self, transfer: Transfer) -> Callable[[], Checksum | None]:
        return lambda: self._store.checksum(transfer.file.stored)

    def _fetch(self, arrival: "Arrival", part: Part | None) -> None:
        if part is not None:
            checksum = self._patiently(lambda: self._read(arrival, part))
            if not arrival.transfer.partial.note(part, checksum):
                return
        arrival.finish()
        logger.info("weights file fetched", extra={"key": arrival.transfer.file.key})

    def _read(self, arrival: "Arrival", part: Part) -> int:
        """Return the checksum of a part that is on its place now."""
        buffer = memoryview(bytearray(min(_BUFFER_BYTES, part.end - part.start)))
        offset, checksum = part.start, 0
        try:
            with self._store.read(arrival.transfer.file.stored, part.start, part.end) as stream:
                while offset < part.end:
                    if self._is_over():
                        raise Stopped
                    taken = stream.readinto(buffer[: part.end - offset])
                    if taken == 0:
                        raise TransferBroken(f"{arrival.transfer.file.key}: ended after {offset} bytes")
                    arrival.transfer.partial.write(offset, buffer[:taken])
                    checksum = arrival.update(buffer[:taken], checksum)
                    offset += taken
                    self._advance(taken, arrival.transfer.file.name)
        except BaseException:
            self._advance(part.start - offset, arrival.transfer.file.name)
            raise
        return checksum

    def _patiently(self, call: Callable[[], T]) -> T:
        for pause_s in _PAUSES_S:
            try:
                return call()
            except TransferBroken as error:
                logger.warning("fetch interrupted", extra={"error": error.message, "pause_s": pause_s})
            self._pause(pause_s)
        return call()

    def _pause(self, seconds: float) -> None:
        """Wait; raises Stopped as soon as that has no use any more."""
        until_s = time.monotonic() + seconds
        while not self._is_over() and (left_s := until_s - time.monotonic()) > 0:
            self._stop.wait(min(left_s, _REPORT_INTERVAL_S))
        if self._is_over():
            raise Stopped

    def _is_over(self) -> bool:
        return self._stop.is_set() or self._has_failed.is_set()

    def _advance(self, num_bytes: int, name: str) -> None:
        with self._lock:
            self._num_done += num_bytes
            self._latest = name

    def _results(self, futures: "Sequence[Future[T]]") -> list[T]:
        """Return what every call returned, or raise the first error; calls that have not begun are dropped then."""
        waiting: set[Future[T]] = set(futures)
        while waiting:
            done, waiting = wait(waiting, _REPORT_INTERVAL_S, FIRST_EXCEPTION)
            self._report()
            failed = [error for future in done if (error := future.exception()) is not None]
            if failed:
                for future in waiting:
                    future.cancel()
                raise next((error for error in failed if not isinstance(error, Stopped)), failed[0])
        return [future.result() for future in futures]

    def _report(self) -> None:
        with self._lock:
            num_done, latest = self._num_done, self._latest
        self._on_bytes(num_done, self._num_total, latest)


class Arrival:
    """A file on its way, and what is to be checked when it is there."""

    def __init__(self, transfer: Transfer, checksum: Checksum | None) -> None:
        self.transfer = transfer
        self._checksum = checksum
        self._crc: Crc | None = find_crc(checksum.kind) if checksum else None

    def work(self) -> list[tuple["Arrival", Part | None]]:
        """Return the parts to fetch; None stands for a file that needs no more than to be finished."""
        missing = [part for part in self.transfer.partial.missing() if part.end > part.start]
        return [(self, part) for part in missing] or [(self, None)]

    def update(self, data: memoryview, before: int) -> int:
        """Return the checksum of a part so far; 0 where that is not asked for."""
        return self._crc.update(data, before) if self._crc else 0

    def finish(self) -> None:
        """Verify, and put the whole file in place. Raises ReplicaFailed if the content is not what was asked for."""
        partial, file = self.transfer.partial, self.transfer.file
        if not self._is_right():
            partial.discard()
            kind = self._checksum.kind if self._checksum else ""
            raise ReplicaFailed(
                f"{file.key}: what arrived has not the {kind} that the store has for it; fetching it anew"
            )
        partial.publish(self.transfer.target)

    def _is_right(self) -> bool:
        if self._checksum is None:
            return True
        if self._crc is not None:
            return combined(self._crc, self.transfer.partial.checksums()) == self._checksum.value
        return matches_file(self._checksum, self.transfer.partial.path) is not False
