"""The seam between a rank pool and whatever starts processes."""

from collections.abc import Sequence
from typing import Protocol

from parallel.rank.messages import RankSpec


class RankLauncher(Protocol):
    """Starts one process per rank and ends them. `stop` and `describe_exit` may be called from any thread."""

    def launch(self, specs: Sequence[RankSpec]) -> None:
        """Start one process per spec without waiting for any of them. Raises StartupError if they cannot be started."""
        ...

    def stop(self) -> None:
        """Kill every process that is left and wait until it is gone. Idempotent."""
        ...

    def describe_exit(self, rank: int) -> str | None:
        """Return how the rank's process ended (exit code, last words), or None while it is not known to be dead.

        Asked again and again while ranks are awaited, so it must be quick.
        """
        ...
