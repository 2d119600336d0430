"""Shared memory, and room on the disks where models, kernels and Ray's sessions are kept."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.sizes import show_bytes
from deployments.doctor.finding import Finding, ok, problem, warning

LEAST_SHM_BYTES = 2**30
LEAST_FREE_SHM_BYTES = 128 * 2**20
LEAST_DISK_BYTES = 2**30
_RAY_STOPS_AT = 0.95
"""Ray spills no objects to a disk that is fuller than this (its `local_fs_capacity_threshold`)."""
_SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Room:
    """Of one file system."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Cache:
    """A folder that grows."""

    path: str
    room: Room
    is_writable: bool


@dataclass(frozen=True)
class StorageFacts:
    """What can be written where."""

    shm: Room | None
    """None: there is no /dev/shm."""
    caches: Mapping[str, Cache]
    """By what is kept there."""


def gather() -> StorageFacts:
    """Return the room of every place; creates nothing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"
    ray = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    folders = {
        "models from the hub": Path(hub),
        "compiled kernels": cache / "eagleray" / "kernels",
        "Ray sessions and logs": ray,
    }
    return StorageFacts(_room(_SHM) if _SHM.is_dir() else None, {what: _cache(path) for what, path in folders.items()})


def check(facts: StorageFacts) -> Iterator[Finding]:
    """Yield a finding for shared memory and for each cache."""
    yield _shared_memory(facts.shm)
    for what, cache in facts.caches.items():
        yield _cache_finding(what, cache)


def _shared_memory(room: Room | None) -> Finding:
    advice = "containers: --shm-size=4g; Kubernetes: an emptyDir of medium Memory at /dev/shm"
    if room is None:
        return problem("node.shm", "there is no /dev/shm; ranks of one node and Ray meet there", advice)
    found = f"{show_bytes(room.free_bytes)} free of {show_bytes(room.total_bytes)} in /dev/shm"
    if room.free_bytes < LEAST_FREE_SHM_BYTES:
        return problem("node.shm", found, advice + "; what crashed programs left there can be deleted")
    if room.total_bytes < LEAST_SHM_BYTES:
        return warning("node.shm", found + "; Ray's object store goes to the disk instead", advice)
    return ok("node.shm", found)


def _cache_finding(what: str, cache: Cache) -> Finding:
    room = cache.room
    found = f"{what}, {cache.path}: {show_bytes(room.free_bytes)} free of {show_bytes(room.total_bytes)}"
    if not cache.is_writable:
        return problem(
            "node.disk", f"{what}: {cache.path} cannot be written", "change its owner, or use another folder"
        )
    if room.free_bytes < LEAST_DISK_BYTES:
        return problem("node.disk", found, "free some room, or move the folder (HF_HOME, XDG_CACHE_HOME, RAY_TMPDIR)")
    if room.free_bytes < (1 - _RAY_STOPS_AT) * room.total_bytes:
        return warning("node.disk", found, "free some room: Ray spills no objects to a disk that is 95 % full")
    return ok("node.disk", found)


def _cache(path: Path) -> Cache:
    there = path
    while not there.exists():
        there = there.parent
    return Cache(str(path), _room(there), os.access(there, os.W_OK))


def _room(path: Path) -> Room:
    usage = shutil.disk_usage(path)
    return Room(usage.total, usage.free)
