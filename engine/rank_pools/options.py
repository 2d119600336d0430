"""How a leader runs its ranks, apart from what they compute."""

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
"""As `leader_host` it means that every rank is on the leader's machine."""


@dataclass(frozen=True)
class PoolOptions:
    """Times are seconds."""

    device: str = "cpu"
    """`cpu` or `cuda`, of every rank."""
    num_threads: int = 1
    """CPU threads of each rank."""
    leader_host: str = LOOPBACK
    """Address of this machine that every rank can reach; nothing listens on any other."""
    collective_timeout_s: float = 30.0
    join_timeout_s: float = 120.0
    """From starting the processes until they form a group. A rank imports torch and opens its device meanwhile."""
    load_timeout_s: float = 3600.0
    """A checkpoint may have to be downloaded."""
    frozen_after_s: float = 2.0
    """A rank that gave no sign of life for so long counts as dead."""
    rejoin_timeout_s: float = 1.0
    """How long survivors of a broken group may take to be ready for the next one before they are replaced too."""
    num_spares: int = 0
    """Processes, 0 or 1, that are started in advance to take the place of a dead rank."""
    incidents: Path | None = None
    """Folder in which what was known when ranks hung is kept."""
    name: str = "ranks"
    """Of the group, for that folder."""
    close_grace_s: float = 1.0
    """How long ranks may take to leave by themselves before they are killed."""
