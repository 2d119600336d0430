"""What was known when ranks hung, kept in a folder: facts as JSON, and where every thread was. Never a prompt.

<folder>/<time>-<group>/incident.json, leader.txt, rank-<n>.txt
"""

import faulthandler
import logging
import re
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)

MAX_INCIDENTS = 20
"""Folders that are kept, newest first."""
MAX_TEXT_BYTES = 128 * 1024
"""Of each file."""


class RankFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the leader knew of one rank."""

    rank: int
    seat: int
    pid: int
    silence_s: float | None
    """Since its last sign of life; None if it has left."""
    is_connected: bool
    lost: str | None
    """What became of it, if that is why the group broke."""


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """One group that hung."""

    what: str
    group: str
    generation: int
    steps_under_way: list[int]
    ranks: list[RankFacts]


class IncidentFolder:
    """Writes incidents; forgets the oldest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, incident: Incident, stacks: dict[int, str]) -> Path | None:
        """Return the folder with the incident and the stacks of the leader and of `stacks`' ranks.

        None if it could not be written: an incident must not cause another.
        """
        try:
            path = self._new_folder(incident.group)
            (path / "incident.json").write_bytes(msgspec.json.format(msgspec.json.encode(incident), indent=1))
            (path / "leader.txt").write_bytes(_own_stacks())
            for rank, text in stacks.items():
                (path / f"rank-{rank}.txt").write_bytes(text.encode()[:MAX_TEXT_BYTES])
            self._forget_old()
        except OSError as error:
            logger.warning("incident not kept", extra={"folder": str(self._folder), "reason": str(error)})
            return None
        logger.error("incident kept", extra={"folder": str(path), "what": incident.what})
        return path

    def _new_folder(self, group: str) -> Path:
        now = datetime.now(UTC)
        name = f"{now:%Y%m%dT%H%M%S.%f}-{re.sub(r'[^A-Za-z0-9._-]+', '_', group)[:80]}"
        path = self._folder / name
        path.mkdir(parents=True, mode=0o700)
        return path

    def _forget_old(self) -> None:
        # Their names begin with the time.
        kept = sorted(path for path in self._folder.iterdir() if path.is_dir())
        for path in kept[:-MAX_INCIDENTS]:
            shutil.rmtree(path, ignore_errors=True)


def _own_stacks() -> bytes:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read(MAX_TEXT_BYTES)
