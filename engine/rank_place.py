"""Where a rank runs, as operators want to see it."""

import msgspec

from parallel.rank.messages import Joined


class RankPlace(msgspec.Struct, frozen=True, array_like=True):
    """One rank's process."""

    rank: int
    node: str
    """Name of the machine, or of the container."""
    pid: int
    device: str
    """`cpu`, or a GPU of that machine."""

    @classmethod
    def of(cls, joined: Joined) -> "RankPlace":
        """Return the place of a rank that has just joined."""
        name, _, _ = joined.node.partition("/")
        return cls(joined.rank, name, joined.pid, joined.device)
