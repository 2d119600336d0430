"""What the steps of a run cost, for its last lines."""

import contextlib
import resource
import time
from collections.abc import Iterator


class Report:
    """Seconds and memory by step, in the order they came."""

    def __init__(self) -> None:
        self._entries: list[str] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note the seconds that the block takes."""
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.note(name, f"{time.monotonic() - started_s:.1f} s")

    def note(self, name: str, value: str) -> None:
        """Note anything."""
        self._entries.append(f"{name:32}  {value}")

    def lines(self) -> list[str]:
        """Return a line for each entry and one for the memory of this process and of the largest it has started."""
        if not self._entries:
            return []
        own, child = (
            resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return [*self._entries, f"{'most memory':32}  this process {own:.2f} GiB, one it started {child:.2f} GiB"]
