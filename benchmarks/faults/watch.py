"""What processes hold over time, memory, descriptors and threads, and whether it grows."""

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import psutil

_MIB = 2**20
_MINUTE_S = 60.0
_HOUR_S = 3600.0

Family = Callable[[], Mapping[str, Sequence[psutil.Process]]]
"""Returns the living processes by role."""


class Reading(NamedTuple):
    """A process at one moment."""

    at_s: float
    rss_bytes: int
    num_fds: int
    num_threads: int


class Incarnation(NamedTuple):
    """A process for the length of its life: ids are used again."""

    role: str
    pid: int
    created_s: float


class Slope(NamedTuple):
    """A straight line's rise, and how uncertain it is."""

    per_h: float
    error_per_h: float
    """Standard error of the least-squares fit."""


class Limits(NamedTuple):
    """How much growth counts as none."""

    warm_up_s: float = 60.0
    """Of each process's life; left out."""
    least_watched_s: float = 120.0
    """Processes watched for less say nothing about growth."""
    rss_mib_per_h: float = 40.0
    fds: int = 4
    threads: int = 2


ORDINARY = Limits()


class Growth(NamedTuple):
    """One process's life in figures."""

    process: Incarnation
    watched_s: float
    rss_mib: tuple[float, float]
    """In the first and in the last quarter, medians."""
    rss: Slope
    """MiB, over the second half: caches and allocators that fill up to a bound have mostly done so by then."""
    rss_by_minute_mib: tuple[float, ...]
    """Medians of whole minutes, so that a bound that is approached is told from a leak."""
    fds: tuple[int, int]
    threads: tuple[int, int]

    def reasons(self, limits: Limits) -> list[str]:
        """Return what grew, nothing if all is flat. A slope counts when it is over the limit by twice its error."""
        grown: list[str] = []
        if self.rss.per_h - 2 * self.rss.error_per_h > limits.rss_mib_per_h:
            grown.append(f"memory by {self.rss.per_h:.0f} MiB an hour")
        if self.fds[1] - self.fds[0] > limits.fds:
            grown.append(f"descriptors from {self.fds[0]} to {self.fds[1]}")
        if self.threads[1] - self.threads[0] > limits.threads:
            grown.append(f"threads from {self.threads[0]} to {self.threads[1]}")
        return grown

    def as_json(self, limits: Limits) -> dict[str, Any]:
        """Return the figures for a results file."""
        return {
            "role": self.process.role,
            "pid": self.process.pid,
            "watched_s": round(self.watched_s),
            "rss_mib": [round(value, 1) for value in self.rss_mib],
            "rss_mib_per_h": round(self.rss.per_h, 1),
            "rss_error_mib_per_h": round(self.rss.error_per_h, 1),
            "rss_by_minute_mib": [round(value, 1) for value in self.rss_by_minute_mib],
            "fds": self.fds,
            "threads": self.threads,
            "grew": self.reasons(limits),
        }


class Watch:
    """A context manager that reads every process of a family every `period_s` in a thread of its own."""

    def __init__(self, family: Family, period_s: float = 2.0) -> None:
        self._family = family
        self._period_s = period_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.readings: dict[Incarnation, list[Reading]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def read(self) -> None:
        """Take one reading of every process."""
        for role, processes in self._family().items():
            for process in processes:
                try:
                    one = Incarnation(role, process.pid, process.create_time())
                    reading = read(process)
                except psutil.Error:
                    continue  # it ended just now
                self.readings.setdefault(one, []).append(reading)

    def _run(self) -> None:
        while not self._is_over.wait(self._period_s):
            self.read()


def read(process: psutil.Process) -> Reading:
    """Return what a process holds now. Raises psutil.Error."""
    with process.oneshot():
        return Reading(time.monotonic(), process.memory_info().rss, process.num_fds(), process.num_threads())


def growths(readings: Mapping[Incarnation, Sequence[Reading]], limits: Limits = ORDINARY) -> list[Growth]:
    """Return a figure for every process that was watched long enough, by role and id."""
    found: list[Growth] = []
    for process, life in readings.items():
        warm = [one for one in life if one.at_s - life[0].at_s >= limits.warm_up_s]
        if warm and warm[-1].at_s - warm[0].at_s >= limits.least_watched_s:
            found.append(_growth(process, warm))
    return sorted(found, key=lambda growth: growth.process)


def slope(times_s: Sequence[float], values: Sequence[float]) -> Slope:
    """Return the least-squares slope per hour; of two points the error is not known and given as 0."""
    x, y = np.asarray(times_s) / _HOUR_S, np.asarray(values)
    x = x - x.mean()
    spread = float((x**2).sum())
    rise = float((x * y).sum()) / spread
    residuals = y - y.mean() - rise * x
    freedom = len(x) - 2
    return Slope(rise, float(np.sqrt((residuals**2).sum() / freedom / spread)) if freedom > 0 else 0.0)


def _growth(process: Incarnation, life: Sequence[Reading]) -> Growth:
    quarter = max(1, len(life) // 4)

    def ends(values: Sequence[float]) -> tuple[float, float]:
        return statistics.median(values[:quarter]), statistics.median(values[-quarter:])

    rss_mib = [one.rss_bytes / _MIB for one in life]
    late = len(life) // 2
    minutes = itertools.groupby(life, key=lambda one: int((one.at_s - life[0].at_s) // _MINUTE_S))
    fds, threads = ends([one.num_fds for one in life]), ends([one.num_threads for one in life])
    return Growth(
        process=process,
        watched_s=life[-1].at_s - life[0].at_s,
        rss_mib=ends(rss_mib),
        rss=slope([one.at_s for one in life[late:]], rss_mib[late:]),
        rss_by_minute_mib=tuple(statistics.median(one.rss_bytes / _MIB for one in minute) for _, minute in minutes),
        fds=(int(fds[0]), int(fds[1])),
        threads=(int(threads[0]), int(threads[1])),
    )
