"""The machine's disks as `lsblk` lists them, and the two things done to them. Nothing that holds data is formatted."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from cluster.node.commands import CommandFailed, Commands
from cluster.node.errors import BootFailed

logger = logging.getLogger(__name__)

INSTANCE_DISK = "Amazon EC2 NVMe Instance Storage"
VOLUME = "Amazon Elastic Block Store"
_NOTHING_FOUND = 2
"""Exit code of `blkid --probe` for a device without any known signature."""


class BlockDevice(msgspec.Struct, frozen=True):
    """One row of `lsblk --json`, with what is built on it."""

    path: str
    type: str = "disk"
    model: str | None = None
    serial: str | None = None
    mountpoints: tuple[str | None, ...] = ()
    children: "tuple[BlockDevice, ...]" = ()

    @property
    def family(self) -> "Iterator[BlockDevice]":
        """This device and all that is built on it: partitions, arrays, logical volumes."""
        yield self
        for child in self.children:
            yield from child.family

    @property
    def places(self) -> list[str]:
        """Where it, or something built on it, is mounted."""
        return [place for device in self.family for place in device.mountpoints if place]

    @property
    def product(self) -> str:
        """The model name without the blanks that some kernels pad it with."""
        return (self.model or "").strip()


class _Listing(msgspec.Struct):
    blockdevices: tuple[BlockDevice, ...]


class Mount(NamedTuple):
    """What is found at a folder afterwards."""

    folder: Path
    source: str
    """A device, a folder of another mount, or `""` for a plain directory."""


def list_disks(commands: Commands) -> list[BlockDevice]:
    """Return the machine's disks. Raises BootFailed."""
    try:
        text = commands.run("lsblk", "--json", "--output", "PATH,TYPE,MODEL,SERIAL,MOUNTPOINTS")
        listing = msgspec.json.decode(text, type=_Listing)
    except (CommandFailed, msgspec.DecodeError) as error:
        raise BootFailed(f"the machine's disks cannot be listed: {error}; install util-linux 2.37 or newer") from None
    return [device for device in listing.blockdevices if device.type == "disk"]


def format_if_blank(commands: Commands, device: str) -> bool:
    """Make an XFS file system on a device that holds nothing; return whether one was made. Raises BootFailed."""
    if not is_blank(commands, device):
        return False
    try:
        # Never with --force: what `blkid` may have overlooked, mkfs refuses.
        commands.run("mkfs.xfs", "-q", device, timeout_s=300)
    except CommandFailed as error:
        raise BootFailed(f"{device} cannot be formatted: {error}; is xfsprogs installed?") from None
    logger.info("blank device formatted", extra={"device": device})
    return True


def is_blank(commands: Commands, device: str) -> bool:
    """Return whether a device has no file system, partition table or array member on it. Raises BootFailed."""
    try:
        return not commands.run("blkid", "--probe", device).strip()
    except CommandFailed as error:
        if error.exit_code == _NOTHING_FOUND:
            return True
        raise BootFailed(f"it cannot be seen whether {device} holds data: {error}") from None


def mount(commands: Commands, device: str, folder: Path) -> Mount:
    """Mount a device at a folder. Raises BootFailed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        commands.run("mount", "-o", "noatime", device, str(folder))
    except CommandFailed as error:
        raise BootFailed(f"{device} cannot be mounted at {folder}: {error}; see `lsblk -f` and dmesg") from None
    return Mount(folder, device)
