"""How many cores this process may keep busy, and how soon it gets them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_OWN_THREADS = Path("/proc/self/task")


def usable_cores(own_cgroup: Path = _OWN_CGROUP, cgroups: Path = _CGROUPS) -> int:
    """Return the cores this process may run on, or what its control group's CPU quota pays for if that is less.

    Threads beyond that take time from each other: the kernel stops all of them once the quota of a period is used up.
    """
    quotas = [int(quota) for folder in _own_folders(own_cgroup, cgroups) if (quota := _quota(folder)) is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def take_normal_priority() -> int:
    """Have every thread of this process, and those to come, run at niceness 0; return the niceness they really have.

    Ray starts its workers at 15, where anything else on the machine comes first. Lowering it takes a right
    (CAP_SYS_NICE); without it nothing changes.
    """
    with contextlib.suppress(OSError):
        for thread in _OWN_THREADS.iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 0)
    return os.getpriority(os.PRIO_PROCESS, 0)


def _own_folders(own_cgroup: Path, cgroups: Path) -> Iterator[Path]:
    """Yield this process's version 2 control group and those it is in, up to the root; a quota of each counts."""
    try:
        lines = own_cgroup.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            folder = cgroups / line.removeprefix("0::/")
            yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(cgroups)))


def _quota(folder: Path) -> float | None:
    """Return cores' worth of time per period, None where there is no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        # No such group (seen from inside a container, say), or "max".
        return None
