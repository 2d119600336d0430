"""The seam between a rank pool and whatever starts processes."""

from collections.abc import Sequence
from typing import Protocol

from parallel.rank.messages import RankSpec


class RankLauncher(Protocol):
    """Starts processes, one a seat, and ends them. A seat whose process has ended may be given another.

    Any method may be called from any thread.
    """

    def launch(self, specs: Sequence[RankSpec]) -> None:
        """Start one process per spec without waiting for any of them. Raises StartupError if they cannot be started."""
        ...

    def end(self, seat: int, pid: int | None = None) -> None:
        """Kill the seat's process if it is left, frozen or not, and wait until it is gone. Idempotent.

        `pid` is what the process said of itself, None if it has not arrived.
        """
        ...

    def stop(self) -> None:
        """Kill every process that is left and wait until it is gone. Idempotent."""
        ...

    def describe_exit(self, seat: int) -> str | None:
        """Return how the seat's process ended (exit code, last words), or None while it is not known to be dead.

        Asked again and again while processes are awaited, so it must be quick.
        """
        ...
