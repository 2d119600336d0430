"""What the live page may cost."""

from pydantic import PositiveInt

from core.config import Config


class LiveConfig(Config):
    """The page at `/` that shows what serves now."""

    enabled: bool = True
    """Serve it. Off: `/` and `/live/...` are unknown paths, and nothing is kept for them."""
    max_viewers: PositiveInt = 32
    """Most pages that one gateway copy keeps up to date at the same time."""
