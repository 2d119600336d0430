"""When each thing happened for the first time, in seconds from the start of a command."""

import time
from collections.abc import Sequence


class Timeline:
    """Begins when it is made. Times are seconds from then."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._seen: dict[str, float] = {}

    def note(self, event: str) -> None:
        """Remember that `event` has happened by now; only the first time counts."""
        self._seen.setdefault(event, round(time.monotonic() - self._started_s, 3))

    def has(self, event: str) -> bool:
        """Return whether `event` has happened."""
        return event in self._seen

    def is_past(self, seconds: float) -> bool:
        """Return whether more than `seconds` have gone by."""
        return time.monotonic() - self._started_s > seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Every event's time, in the order they happened."""
        return dict(self._seen)


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each event's time over runs; events that some run lacks are left out."""
    shared = [event for event in runs[0] if all(event in run for run in runs)]
    return {event: sorted(run[event] for run in runs)[len(runs) // 2] for event in shared}


def as_table(title: str, runs: Sequence[dict[str, float]]) -> str:
    """Return one line per event: its median time, and how long after the event before it."""
    lines, before = [f"{title} (median of {len(runs)})"], 0.0
    for event, at_s in medians(runs).items():
        lines.append(f"  {at_s:7.2f} s  +{at_s - before:5.2f}  {event}")
        before = at_s
    return "\n".join(lines)
