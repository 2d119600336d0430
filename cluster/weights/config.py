"""Where a machine keeps weights that it fetched, how much of them, and how it fetches."""

import os
from pathlib import Path

from pydantic import Field, PositiveInt

from core.config import Config
from engine.config import Bytes

CACHE_VARIABLE = "EAGLERAY_WEIGHTS_CACHE"
_DEFAULT_CACHE = "~/.cache/eagleray/weights"


class WeightsConfig(Config):
    """Fetching from object stores; models elsewhere do not look at it."""

    cache: str | None = Field(default=None, min_length=1)
    """Folder on each machine. Default: what EAGLERAY_WEIGHTS_CACHE says there, else `~/.cache/eagleray/weights`."""
    max_cache: Bytes | None = None
    """Most bytes kept on a machine. Beyond them the models that were unused for longest go, never one in use. Default:
    what the disk holds."""
    streams: PositiveInt = Field(default=16, le=256)
    """Ranges that a machine fetches at the same time; each takes a thread and 1 MiB of memory."""
    part: Bytes = 16 * 2**20
    """Bytes of one range, which is also what a crash costs at most, per stream."""

    @property
    def folder(self) -> Path:
        """The cache of this machine."""
        return Path(self.cache or os.environ.get(CACHE_VARIABLE) or _DEFAULT_CACHE).expanduser().absolute()
