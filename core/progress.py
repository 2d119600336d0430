"""What a rank says while it gets ready."""

import msgspec


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """`done` of `total` units of `phase` on `rank`; the console and `/readyz` show it as a percentage."""

    rank: int
    phase: str
    """One of: fetch, connect, load, warmup, ready."""
    done: int
    total: int
    detail: str = ""
    """For fetch and load: the file or shard being read."""

    @property
    def percent(self) -> int:
        """Whole percent of this phase, 100 when there is nothing to do."""
        return 100 if self.total <= 0 else min(100, 100 * self.done // self.total)
