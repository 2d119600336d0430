"""The Elastic Fabric Adapter of AWS, over which NCCL joins GPUs of several machines."""

import ctypes.util
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deployments.doctor.finding import Finding, ok, problem, warning
from deployments.doctor.inside import ask
from deployments.doctor.node import role

_VERBS = Path("/sys/class/infiniband")
_PCI = Path("/sys/bus/pci/devices")
_AMAZON = "0x1d0f"
_EFA_IDS = frozenset({"0xefa0", "0xefa1", "0xefa2", "0xefa3"})
_FI_INFO = "/opt/amazon/efa/bin/fi_info"
"""Where Amazon's installer puts it, which is on no PATH."""
_PLUGINS = ("/opt/amazon/ofi-nccl", "/opt/aws-ofi-nccl", "/opt/amazon/aws-ofi-nccl")
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class FabricFacts:
    """What a node needs to speak to others over EFA."""

    is_wanted: bool
    """node.json says so."""
    num_adapters: int
    """On the PCI bus."""
    num_devices: int
    """That the kernel driver offers."""
    provider: str | None
    """What `fi_info -p efa` says went wrong, empty if nothing; None: there is no fi_info."""
    has_nccl_plugin: bool
    max_locked_bytes: int | None
    """Memory that may be pinned; None: without limit."""


def gather() -> FabricFacts:
    """Return what is there."""
    num_adapters = sum(_is_efa(device) for device in _PCI.glob("*"))
    program = shutil.which("fi_info") or _FI_INFO
    reply = ask([program, "-p", "efa"], _TIMEOUT_S) if num_adapters else None
    config = role.gather().config
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return FabricFacts(
        is_wanted=config is not None and config.efa,
        num_adapters=num_adapters,
        num_devices=sum(_driver(device) == "efa" for device in _VERBS.glob("*")),
        provider=reply.error if reply else None,
        has_nccl_plugin=any(Path(folder).is_dir() for folder in _PLUGINS)
        or ctypes.util.find_library("nccl-net") is not None,
        max_locked_bytes=None if locked == resource.RLIM_INFINITY else locked,
    )


def check(facts: FabricFacts) -> Iterator[Finding]:
    """Yield what keeps NCCL off the fabric; nothing where there is none and none is wanted."""
    if not facts.num_adapters:
        if facts.is_wanted:
            yield problem(
                "node.efa",
                "node.json says efa, and this machine has no such adapter",
                "use an instance type with EFA, and interfaces of type efa in its launch template",
            )
        return
    if facts.num_devices < facts.num_adapters:
        yield problem(
            "node.efa",
            f"{facts.num_adapters} EFA adapters, of which the kernel offers {facts.num_devices}",
            "install the EFA driver (`modinfo efa`), and reboot",
        )
    elif facts.provider is None:
        yield problem("node.efa", "libfabric is not installed (no fi_info)", "install the aws-efa-installer package")
    elif facts.provider:
        yield problem("node.efa", f"fi_info -p efa: {facts.provider}", "install aws-efa-installer again, and reboot")
    else:
        yield ok("node.efa", f"{facts.num_devices} EFA devices, and libfabric finds them")
    if not facts.has_nccl_plugin:
        yield warning(
            "node.efa", "NCCL has no plugin for EFA: ranks of several nodes talk over TCP", "install aws-ofi-nccl"
        )
    if facts.max_locked_bytes is not None:
        yield problem(
            "node.efa",
            f"only {facts.max_locked_bytes // 1024} KiB of memory may be locked; the adapter needs to pin buffers",
            "LimitMEMLOCK=infinity in the unit, or `memlock unlimited` in limits.conf",
        )


def _is_efa(device: Path) -> bool:
    return _read(device / "vendor") == _AMAZON and _read(device / "device") in _EFA_IDS


def _driver(device: Path) -> str:
    link = device / "device" / "driver"
    return link.resolve().name if link.exists() else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
