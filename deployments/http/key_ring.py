"""The keys that are let in now: those of the configuration, and those of a file that is read again when it changes."""

import asyncio
import hmac
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from core.clock import Clock
from core.errors import InvalidConfig
from deployments.http.api_keys import ApiKey, digest_of, duplicates, read_key_file
from deployments.http.caller import Caller
from deployments.http.quota import Quota

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0
"""A key taken out of the file opens nothing after this."""


class _Stamp(NamedTuple):
    """Tells one content of a file from the next."""

    modified_ns: int
    num_bytes: int
    inode: int


class _Entry(NamedTuple):
    key: ApiKey
    caller: Caller


class KeyRing:
    """Finds the caller behind a key. Lives on one event loop."""

    def __init__(self, keys: Sequence[ApiKey], file: Path | None, clock: Clock) -> None:
        """Reads `file`, so it blocks. Raises InvalidConfig."""
        self._fixed = list(keys)
        self._file = file
        self._clock = clock
        self._looked_s = clock.now_s()
        self._stamp = _stamp(file) if file is not None else None
        self._reading: asyncio.Task[None] | None = None
        self._entries: dict[bytes, _Entry] = {}
        self._replace(self._read())

    @property
    def is_locked(self) -> bool:
        """Whether a key is needed at all; a file without keys lets nobody in."""
        return self._file is not None or bool(self._fixed)

    async def find(self, key: str) -> Caller | None:
        """Return the caller that `key` belongs to; takes as long for a near miss as for any other."""
        await self._refresh()
        digest = digest_of(key)
        found: Caller | None = None
        for known, entry in self._entries.items():
            # No early end: the time taken tells nothing about which one was near.
            if hmac.compare_digest(digest, known):
                found = entry.caller
        return found

    async def _refresh(self) -> None:
        """Read the file again if it changed; looks at most once a second."""
        if self._file is None:
            return
        now_s = self._clock.now_s()
        if self._reading is None and now_s - self._looked_s >= _LOOK_AGAIN_S:
            self._looked_s = now_s
            stamp = _stamp(self._file)
            if stamp is not None and stamp != self._stamp:
                self._stamp = stamp
                self._reading = asyncio.create_task(self._read_again())
        if self._reading is not None:
            # Shielded: the caller who started it may leave, the others still wait for it.
            await asyncio.shield(self._reading)

    async def _read_again(self) -> None:
        try:
            keys = await asyncio.get_running_loop().run_in_executor(None, self._read)
        except InvalidConfig as error:
            logger.error("API keys not read again, the old ones stay", extra={"error": error.message})
        else:
            self._replace(keys)
            logger.info("API keys read again", extra={"num_keys": len(keys)})
        finally:
            self._reading = None

    def _read(self) -> list[ApiKey]:
        keys = [*self._fixed, *(read_key_file(self._file) if self._file is not None else [])]
        if twice := duplicates(keys):
            raise InvalidConfig(
                f"{self._file}: {', '.join(twice)}: a name or a sha256 is there twice; keep one of each"
            )
        return keys

    def _replace(self, keys: Sequence[ApiKey]) -> None:
        """Let in `keys` and nobody else. A key that stays as it was keeps what it has used."""
        old = self._entries
        self._entries = {}
        for key in keys:
            entry = old.get(key.digest)
            if entry is None or entry.key != key:
                entry = _Entry(key, Caller.of(key, Quota(key, self._clock)))
            self._entries[key.digest] = entry


def _stamp(file: Path) -> _Stamp | None:
    """Return None if the file cannot be looked at, as while it is being replaced."""
    try:
        status = file.stat()
    except OSError:
        return None
    return _Stamp(status.st_mtime_ns, status.st_size, status.st_ino)
