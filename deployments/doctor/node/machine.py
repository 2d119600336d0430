"""Cores, memory, limits and clock of this machine."""

import ctypes
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.cores import usable_cores
from core.sizes import show_bytes
from deployments.doctor.finding import Finding, note, ok, problem, warning

LEAST_FILES = 8192
LEAST_MEMORY_BYTES = 2 * 2**30
_RELEASE_YEAR = 2026
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_TIME_ERROR = 5
"""What adjtimex(2) returns while nothing keeps the clock right."""


@dataclass(frozen=True)
class MachineFacts:
    """What there is to compute with."""

    num_cores: int
    num_usable_cores: int
    """Affinity and the control group's quota respected."""
    load_1min: float
    total_bytes: int
    available_bytes: int
    limit_bytes: int | None
    """Of the control group."""
    huge_pages: str | None
    """`always`, `madvise` or `never`; None where the kernel has no such thing."""
    max_files: int
    """Soft limit of open files."""


@dataclass(frozen=True)
class ClockFacts:
    """What the clock says."""

    year: int
    is_synchronised: bool | None
    """None: the kernel does not say."""


def gather_machine() -> MachineFacts:
    """Return the machine as this process sees it."""
    memory = psutil.virtual_memory()
    return MachineFacts(
        num_cores=os.cpu_count() or 1,
        num_usable_cores=usable_cores(),
        load_1min=os.getloadavg()[0],
        total_bytes=memory.total,
        available_bytes=memory.available,
        limit_bytes=_limit(_MEMORY_LIMIT),
        huge_pages=_chosen(_HUGE_PAGES),
        max_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def check_machine(facts: MachineFacts) -> Iterator[Finding]:
    """Yield a finding for cores, memory, huge pages and open files each."""
    yield _cores(facts)
    yield _memory(facts)
    yield _huge_pages(facts.huge_pages)
    if facts.max_files == resource.RLIM_INFINITY or facts.max_files >= LEAST_FILES:
        yield ok("node.open_files", f"{facts.max_files} files may be open")
    else:
        yield warning(
            "node.open_files",
            f"only {facts.max_files} files may be open; every stream takes one in the proxy",
            "ulimit -n 65536; for services, LimitNOFILE=65536 in the unit",
        )


def _cores(facts: MachineFacts) -> Finding:
    found = f"{facts.num_usable_cores} of {facts.num_cores} cores, load {facts.load_1min:.1f}"
    if facts.load_1min > 2 * facts.num_usable_cores:
        return warning("node.cores", found, "something else computes here; end it, or measured speeds mean nothing")
    if facts.num_usable_cores < 2:
        return warning("node.cores", found, "give it two at least: a leader and a rank work at the same time")
    return ok("node.cores", found)


def _memory(facts: MachineFacts) -> Finding:
    # A container sees the machine's memory, and dies at its own limit.
    usable = min(facts.available_bytes, facts.limit_bytes or facts.available_bytes)
    limit = f", limited to {show_bytes(facts.limit_bytes)}" if facts.limit_bytes else ""
    found = f"{show_bytes(facts.available_bytes)} free of {show_bytes(facts.total_bytes)}{limit}"
    if usable < LEAST_MEMORY_BYTES:
        return problem("node.memory", found, "free some: Ray and the smallest model together need 2 GiB")
    return ok("node.memory", found)


def _huge_pages(mode: str | None) -> Finding:
    if mode == "never":
        return warning(
            "node.huge_pages",
            "transparent huge pages are off (never); weights and KV then take more time to address on a CPU",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    return ok("node.huge_pages", f"transparent huge pages: {mode or 'not known to this kernel'}")


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if text == "max" else int(text)


def _chosen(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").partition("[")[2].partition("]")[0]
    except OSError:
        return None


def gather_clock() -> ClockFacts:
    """Return what the clock says, and whether the kernel believes it."""
    return ClockFacts(time.gmtime().tm_year, _is_synchronised())


def check_clock(facts: ClockFacts) -> Iterator[Finding]:
    """Yield whether dates and signatures can be right."""
    if facts.year < _RELEASE_YEAR:
        yield problem("node.clock", f"the year is {facts.year}", "set the clock: TLS and cloud APIs refuse such dates")
    elif facts.is_synchronised is False:
        yield note(
            "node.clock",
            "nothing keeps the clock right (no NTP)",
            "on a cluster, run chrony or systemd-timesyncd: logs and traces of nodes are compared by time",
        )
    else:
        yield ok("node.clock", "kept by NTP" if facts.is_synchronised else "the kernel does not say who keeps it")


def _is_synchronised() -> bool | None:
    try:
        libc = ctypes.CDLL(None)
        # struct timex, all zero: change nothing, say how it is. 208 bytes on 64-bit Linux; room to spare.
        state: int = libc.adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR
