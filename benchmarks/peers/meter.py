"""What a server's processes use, and what everybody else uses meanwhile."""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import psutil


def family(root: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants; empty if it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [root, *root.children(recursive=True)]
    return []


def memory_mib(root: psutil.Process) -> float:
    """Return the proportional set size of the tree: pages that processes share are counted once."""
    total = 0.0
    for process in family(root):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss / 2**20
    return round(total, 1)


class Shares(NamedTuple):
    """Cores used over a span of time, by whom."""

    server: float
    client: float
    others: float
    """The rest of the machine: anything but a few hundredths makes a row suspect."""


class CpuMeter:
    """CPU time from its making until `shares`, of a server's tree, of this process, and of all else."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._start = self._read()

    def shares(self) -> Shares:
        """Return the cores used since the meter was made."""
        (at, server, client, machine), (at0, server0, client0, machine0) = self._read(), self._start
        span_s = max(at - at0, 1e-9)
        used = [max(0.0, now - before) for now, before in ((server, server0), (client, client0), (machine, machine0))]
        others = max(0.0, used[2] - used[0] - used[1])
        return Shares(*(round(seconds / span_s, 3) for seconds in (used[0], used[1], others)))

    def _read(self) -> tuple[float, float, float, float]:
        own = psutil.Process().cpu_times()
        return time.perf_counter(), sum(_cpu_seconds(self._root)), own.user + own.system, _busy_seconds()


def _cpu_seconds(root: psutil.Process) -> Iterator[float]:
    for process in family(root):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            yield times.user + times.system


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    # Guests' time is part of user time; iowait is idle.
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
