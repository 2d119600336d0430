"""What a rank finds on its machine: which machine it is, and how much memory is left."""

import platform
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CGROUP = Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Bytes of the GPU, or of the machine for `cpu`."""

    total_bytes: int
    free_bytes: int


def node_name() -> str:
    """Return the same for processes that share memory, another for other machines and for other containers."""
    try:
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        boot_id = ""
    # Containers of one machine share the boot id but have host names, and memory limits, of their own.
    return f"{platform.node()}/{boot_id}"


def memory_of(device: torch.device, cgroup: Path = _CGROUP) -> Memory:
    """Return what the device has; a container's limit counts as the machine's memory."""
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return Memory(total_bytes, free_bytes)
    machine = psutil.virtual_memory()
    limit = _cgroup_memory(cgroup)
    if limit is None:
        return Memory(machine.total, machine.available)
    return Memory(min(machine.total, limit.total_bytes), min(machine.available, limit.free_bytes))


def _cgroup_memory(cgroup: Path) -> Memory | None:
    """Return the limit of a version 2 control group, None where there is none."""
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        # No such group, or "max": no limit.
        return None
    # Pages of files that nobody looked at lately are given back on demand.
    return Memory(limit, max(0, limit - used + int(statistics.get("inactive_file", 0))))
