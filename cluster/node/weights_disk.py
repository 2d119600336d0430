"""Where model weights are kept on a machine: its own NVMe disks joined to one, or a plain folder if it has none."""

from pathlib import Path

from cluster.node.commands import CommandFailed, Commands
from cluster.node.disks import INSTANCE_DISK, BlockDevice, Mount, format_if_blank, is_blank, list_disks, mount
from cluster.node.errors import BootFailed

_ARRAY = "/dev/md/eagleray-weights"
_SHARED_FOLDER = "eagleray-weights"


def mount_weights_disk(commands: Commands, folder: Path) -> Mount:
    """Have the machine's NVMe disks mounted at `folder`; return what is there. Raises BootFailed.

    Called again, after a restart or a reboot, it finds what it made. Disks that something else has mounted already
    (images for deep learning do so) are shared: a folder of theirs appears at `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    disks = [disk for disk in list_disks(commands) if disk.product == INSTANCE_DISK]
    places = [place for disk in disks for place in disk.places]
    if not disks:
        return Mount(folder, "")
    if str(folder) in places:
        return Mount(folder, disks[0].path)
    if places:
        return _share(commands, Path(places[0]) / _SHARED_FOLDER, folder)
    device = _one_device(commands, disks)
    format_if_blank(commands, device)
    return mount(commands, device, folder)


def _one_device(commands: Commands, disks: list[BlockDevice]) -> str:
    """Return the device that stands for all disks: the only one, the array they form, or one made of blank ones."""
    if len(disks) == 1 and not disks[0].children:
        return disks[0].path
    arrays = {device.path for disk in disks for device in disk.family if device.type.startswith("raid")}
    if len(arrays) == 1:
        return arrays.pop()
    used = [disk.path for disk in disks if disk.children or not is_blank(commands, disk.path)]
    if used:
        raise BootFailed(
            f"{', '.join(used)} hold data that is not ours, so they are not made the cache of weights; empty them with "
            "`wipefs --all DEVICE`, or mount them yourself at weights_cache"
        )
    return _make_array(commands, [disk.path for disk in disks])


def _make_array(commands: Commands, paths: list[str]) -> str:
    """Join blank disks by RAID 0: weights can be fetched again, so speed counts and a lost disk does not."""
    options = ("--level=0", f"--raid-devices={len(paths)}", "--name=eagleray-weights", "--homehost=any", "--run")
    try:
        commands.run("mdadm", "--create", _ARRAY, *options, *paths, timeout_s=120)
    except CommandFailed as error:
        raise BootFailed(f"{len(paths)} disks cannot be joined: {error}; is mdadm installed?") from None
    return _ARRAY


def _share(commands: Commands, source: Path, folder: Path) -> Mount:
    try:
        commands.run("mkdir", "-p", str(source))
        commands.run("mount", "--bind", str(source), str(folder))
    except CommandFailed as error:
        raise BootFailed(f"the disks mounted at {source.parent} cannot be shared: {error}") from None
    return Mount(folder, str(source))
