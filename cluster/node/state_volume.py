"""The volume on which the head keeps the cluster's state (Ray's GCS in RocksDB). It outlives the machine."""

from pathlib import Path

from cluster.node.commands import Commands
from cluster.node.disks import VOLUME, BlockDevice, Mount, format_if_blank, list_disks, mount
from cluster.node.errors import BootFailed, NotYet


def mount_state_volume(commands: Commands, volume: str, folder: Path) -> Mount:
    """Have the volume mounted at `folder`, formatted if it is blank; return what is there.

    `volume`: a device name or a volume id. Raises NotYet while it is not attached, BootFailed if it cannot be used.
    """
    disks = list_disks(commands)
    for disk in disks:
        if str(folder) in disk.places:
            return Mount(folder, disk.path)
    disk = _find(disks, volume)
    if disk.places or disk.children:
        raise BootFailed(
            f"volume {volume} is {disk.path}, which is in use ({', '.join(disk.places) or 'partitioned'}); "
            "name an unpartitioned volume of its own in gcs.volume"
        )
    format_if_blank(commands, disk.path)
    return mount(commands, disk.path, folder)


def _find(disks: list[BlockDevice], volume: str) -> BlockDevice:
    """Return the disk that is the volume. Raises NotYet, BootFailed."""
    if volume.startswith("vol-"):
        # The kernel shows a volume's id as serial number, without the hyphen.
        named = [disk for disk in disks if (disk.serial or "").strip() == volume.replace("-", "")]
    else:
        real_path = str(Path(volume).resolve())
        named = [disk for disk in disks if disk.path in (volume, real_path)]
    if named:
        return named[0]
    if volume.startswith("vol-"):
        raise NotYet(f"volume {volume} is not attached; attach it to this machine, or correct gcs.volume")
    return _only_data_volume(disks, volume)


def _only_data_volume(disks: list[BlockDevice], volume: str) -> BlockDevice:
    """Return the one volume that is not in use: kernels show /dev/sdf as /dev/nvme1n1, and not all images link it."""
    ours = [disk for disk in disks if disk.product == VOLUME and not disk.children and not disk.places]
    if len(ours) == 1:
        return ours[0]
    if not ours:
        raise NotYet(f"no volume is attached as {volume}; attach one to this machine, or correct gcs.volume")
    raise BootFailed(
        f"{volume} does not exist, and it may be any of {', '.join(disk.path for disk in ours)}; "
        "name the volume's id (vol-...) in gcs.volume"
    )
