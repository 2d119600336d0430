"""A file that arrives in parts: its bytes, and beside them a journal of the parts that are there.

The journal holds for one version of the file and one boot of the machine: what a process wrote survives the process,
but after a power cut a part that the journal has may not be on the disk.
"""

import os
import threading
from pathlib import Path
from typing import NamedTuple, Self

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Part(NamedTuple):
    """A range of a file."""

    number: int
    start: int
    end: int


class PartialFile:
    """Any thread. `close` it, or use it as a context."""

    def __init__(self, path: Path, num_bytes: int, part_bytes: int, version: str) -> None:
        """Take up what is there of this version, or begin anew; disk space is taken now. Raises OSError."""
        self.path = path
        self.num_bytes = num_bytes
        self._part_bytes = part_bytes
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        header = f"{_boot_id()} {version} {num_bytes} {part_bytes}"
        journal_path = journal_of(path)
        self._checksums = _read_journal(journal_path, header) if path.exists() else {}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not self._checksums:
            os.ftruncate(self._file, 0)
        _replace(journal_path, header + "\n" + "".join(map(_line, self._checksums.items())))
        if num_bytes:
            os.posix_fallocate(self._file, 0, num_bytes)
        self._journal = journal_path.open("a", encoding="ascii")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def missing(self) -> list[Part]:
        """Return the parts that are not there, in order."""
        return [part for part in self._parts() if part.number not in self._checksums]

    @property
    def num_bytes_there(self) -> int:
        """Bytes of the parts that are there."""
        return sum(part.end - part.start for part in self._parts() if part.number in self._checksums)

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes at their place. Raises OSError."""
        while data:
            written = os.pwrite(self._file, data, offset)
            offset, data = offset + written, data[written:]

    def note(self, part: Part, checksum: int) -> bool:
        """Remember that a part is there, and its checksum; return whether all are."""
        with self._lock:
            self._checksums[part.number] = checksum
            self._journal.write(_line((part.number, checksum)))
            self._journal.flush()
            return len(self._checksums) == self._num_parts

    def checksums(self) -> list[tuple[int, int]]:
        """Return (checksum, bytes) of every part, in order, when all are there; a file without bytes has one, 0."""
        return [(self._checksums.get(part.number, 0), part.end - part.start) for part in self._parts()]

    def publish(self, target: Path) -> None:
        """Have the whole file at `target`, on the disk, and nothing here; closes. Raises OSError."""
        os.fsync(self._file)
        self.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path.rename(target)
        journal_of(self.path).unlink()

    def discard(self) -> None:
        """Forget everything: the content was wrong. Closes."""
        self.close()
        self.path.unlink(missing_ok=True)
        journal_of(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave what is there for who comes next. Idempotent."""
        with self._lock:
            if not self._journal.closed:
                self._journal.close()
                os.close(self._file)

    @property
    def _num_parts(self) -> int:
        return max(1, -(-self.num_bytes // self._part_bytes))

    def _parts(self) -> list[Part]:
        size = self._part_bytes
        return [Part(i, i * size, min((i + 1) * size, self.num_bytes)) for i in range(self._num_parts)]


def journal_of(path: Path) -> Path:
    """Return where the journal of a partial file is."""
    return path.with_name(path.name + ".parts")


def _line(noted: tuple[int, int]) -> str:
    number, checksum = noted
    return f"{number} {checksum:x}\n"


def _read_journal(path: Path, header: str) -> dict[int, int]:
    """Return each part's checksum; none if it is another version's, or there is no journal."""
    try:
        first, *lines = path.read_text(encoding="ascii").split("\n")
    except (OSError, UnicodeDecodeError):
        return {}
    if first != header:
        return {}
    # What follows the last line end was being written when the process ended.
    found = (line.split(" ") for line in lines[:-1])
    return {int(number): int(checksum, 16) for number, checksum in found}


def _replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="ascii")
    new.rename(path)


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else "unknown"
