"""Disks become folders, and nothing that holds data is ever formatted."""

import json
from pathlib import Path

import pytest

from cluster.node.disks import Mount
from cluster.node.errors import BootFailed, NotYet
from cluster.node.state_volume import mount_state_volume
from cluster.node.weights_disk import mount_weights_disk
from tests.support.node_machines import RecordedCommands, failed

NVME = "Amazon EC2 NVMe Instance Storage"
EBS = "Amazon Elastic Block Store"
BLANK = failed("blkid", exit_code=2)
ROOT = {
    "path": "/dev/nvme0n1",
    "type": "disk",
    "model": EBS,
    "serial": "vol0aaa",
    "mountpoints": [None],
    "children": [{"path": "/dev/nvme0n1p1", "type": "part", "model": None, "serial": None, "mountpoints": ["/"]}],
}


def disk(number: int, model: str = NVME, **fields: object) -> dict[str, object]:
    device = {"path": f"/dev/nvme{number}n1", "type": "disk", "model": model, "serial": None, "mountpoints": [None]}
    return device | fields


def array(**fields: object) -> dict[str, object]:
    return {"path": "/dev/md127", "type": "raid0", "model": None, "serial": None, "mountpoints": [None]} | fields


def machine(*disks: dict[str, object], blank: bool = True) -> RecordedCommands:
    """A machine with these disks beside its root disk, on which every command works."""
    return RecordedCommands(
        {
            "lsblk": json.dumps({"blockdevices": [ROOT, *disks, {"path": "/dev/loop0", "type": "loop"}]}),
            "blkid": BLANK if blank else "/dev/nvme1n1: TYPE=xfs",
            "mkfs.xfs": "",
            "mdadm": "",
            "mount": "",
            "mkdir": "",
        }
    )


def changes(commands: RecordedCommands) -> list[str]:
    """The commands that change something."""
    return [line for line in commands.lines if not line.startswith(("lsblk", "blkid"))]


def test_machine_without_own_disks_gets_a_plain_folder(tmp_path):
    commands = machine()
    folder = tmp_path / "weights"
    assert mount_weights_disk(commands, folder) == Mount(folder, "")
    assert folder.is_dir()
    assert changes(commands) == []


def test_one_blank_disk_is_formatted_and_mounted(tmp_path):
    commands = machine(disk(1))
    assert mount_weights_disk(commands, tmp_path).source == "/dev/nvme1n1"
    assert changes(commands) == ["mkfs.xfs -q /dev/nvme1n1", f"mount -o noatime /dev/nvme1n1 {tmp_path}"]


def test_several_blank_disks_become_one(tmp_path):
    commands = machine(disk(1), disk(2))
    mount_weights_disk(commands, tmp_path)
    create, make, attach = changes(commands)
    assert create.startswith("mdadm --create /dev/md/eagleray-weights --level=0 --raid-devices=2 ")
    assert create.endswith(" /dev/nvme1n1 /dev/nvme2n1")
    assert make == "mkfs.xfs -q /dev/md/eagleray-weights"
    assert attach == f"mount -o noatime /dev/md/eagleray-weights {tmp_path}"


def test_after_a_reboot_the_array_is_mounted_and_not_formatted(tmp_path):
    commands = machine(disk(1, children=[array()]), disk(2, children=[array()]), blank=False)
    mount_weights_disk(commands, tmp_path)
    assert changes(commands) == [f"mount -o noatime /dev/md127 {tmp_path}"]


def test_after_a_restart_nothing_is_done(tmp_path):
    mounted = array(mountpoints=[str(tmp_path)])
    commands = machine(disk(1, children=[mounted]), disk(2, children=[mounted]))
    mount_weights_disk(commands, tmp_path)
    assert changes(commands) == []


def test_disks_that_the_image_has_mounted_are_shared(tmp_path):
    volume = {"path": "/dev/mapper/vg.01-lv_ephemeral", "type": "lvm", "mountpoints": ["/opt/dlami/nvme"]}
    commands = machine(disk(1, children=[volume]), disk(2, children=[volume]))
    assert mount_weights_disk(commands, tmp_path).source == "/opt/dlami/nvme/eagleray-weights"
    assert changes(commands)[-1] == f"mount --bind /opt/dlami/nvme/eagleray-weights {tmp_path}"


def test_several_disks_with_data_of_others_are_left_alone(tmp_path):
    commands = machine(disk(1), disk(2), blank=False)
    with pytest.raises(BootFailed, match=r"/dev/nvme1n1, /dev/nvme2n1 hold data that is not ours.*wipefs"):
        mount_weights_disk(commands, tmp_path)
    assert changes(commands) == []


def test_disk_that_cannot_be_probed_is_not_formatted(tmp_path):
    commands = machine(disk(1))
    commands.answers["blkid"] = failed("blkid", exit_code=4, output="Input/output error")
    with pytest.raises(BootFailed, match="it cannot be seen whether /dev/nvme1n1 holds data.*Input/output error"):
        mount_weights_disk(commands, tmp_path)
    assert changes(commands) == []


def test_missing_program_is_named(tmp_path):
    commands = machine(disk(1), disk(2))
    del commands.answers["mdadm"]
    with pytest.raises(BootFailed, match="2 disks cannot be joined.*mdadm is not installed"):
        mount_weights_disk(commands, tmp_path)
    with pytest.raises(BootFailed, match="cannot be listed.*lsblk is not installed"):
        mount_weights_disk(RecordedCommands(), tmp_path)


def test_volume_is_found_by_its_id_and_formatted_once(tmp_path):
    volume = disk(1, EBS, serial="vol0abc")
    commands = machine(disk(2, EBS, serial="vol0other"), volume)
    assert mount_state_volume(commands, "vol-0abc", tmp_path).source == "/dev/nvme1n1"
    assert changes(commands) == ["mkfs.xfs -q /dev/nvme1n1", f"mount -o noatime /dev/nvme1n1 {tmp_path}"]


def test_state_of_a_former_head_is_kept(tmp_path):
    commands = machine(disk(1, EBS, serial="vol0abc"), blank=False)
    mount_state_volume(commands, "vol-0abc", tmp_path)
    assert changes(commands) == [f"mount -o noatime /dev/nvme1n1 {tmp_path}"]


def test_device_name_that_the_kernel_does_not_use_means_the_only_free_volume(tmp_path):
    commands = machine(disk(1, EBS))
    assert mount_state_volume(commands, "/dev/sdf", tmp_path).source == "/dev/nvme1n1"
    with pytest.raises(BootFailed, match="may be any of /dev/nvme1n1, /dev/nvme2n1; name the volume's id"):
        mount_state_volume(machine(disk(1, EBS), disk(2, EBS)), "/dev/sdf", tmp_path)


def test_volume_that_is_not_attached_yet_is_waited_for(tmp_path):
    with pytest.raises(NotYet, match="volume vol-0abc is not attached"):
        mount_state_volume(machine(), "vol-0abc", tmp_path)
    with pytest.raises(NotYet, match="no volume is attached as /dev/sdf"):
        mount_state_volume(machine(disk(1)), "/dev/sdf", tmp_path)


def test_volume_that_is_mounted_is_not_looked_for_again(tmp_path):
    commands = machine(disk(1, EBS, mountpoints=[str(tmp_path)]))
    assert mount_state_volume(commands, "/dev/sdf", tmp_path) == Mount(Path(tmp_path), "/dev/nvme1n1")
    assert changes(commands) == []


def test_disk_in_use_is_not_taken_for_the_volume(tmp_path):
    with pytest.raises(BootFailed, match=r"volume vol-0aaa is /dev/nvme0n1, which is in use \(/\)"):
        mount_state_volume(machine(), "vol-0aaa", tmp_path)
