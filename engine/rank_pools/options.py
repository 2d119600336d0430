"""How a leader runs its ranks, apart from what they compute."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolOptions:
    """Times are seconds."""

    device: str = "cpu"
    """`cpu` or `cuda`, of every rank."""
    num_threads: int = 1
    """CPU threads of each rank."""
    leader_host: str = "127.0.0.1"
    """Address of this machine that every rank can reach; nothing listens on any other."""
    collective_timeout_s: float = 30.0
    join_timeout_s: float = 120.0
    """From starting the processes until they form a group. A rank imports torch and opens its device meanwhile."""
    load_timeout_s: float = 3600.0
    """A checkpoint may have to be downloaded."""
    close_grace_s: float = 1.0
    """How long ranks may take to leave by themselves before they are killed."""
