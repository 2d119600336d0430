"""Time as a collaborator, so that tests move it by hand."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that only go forward; the zero is arbitrary."""

    def now_s(self) -> float:
        """Return monotonic seconds."""
        ...


class MonotonicClock:
    """The process's monotonic clock."""

    def now_s(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()
