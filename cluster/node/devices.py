"""Whether the devices that ranks need are there: NVIDIA's driver with every GPU, and EFA where the group uses it.

A machine that fails here is given back before it joins: a missing GPU found later is a group that does not start.
"""

import shutil

from cluster.node.commands import CommandFailed, Commands
from cluster.node.errors import BootFailed, NotYet

_EFA_PROGRAM = "/opt/amazon/efa/bin/fi_info"


def check_gpus(commands: Commands, num_gpus: int) -> None:
    """Return if the driver shows `num_gpus` GPUs. Raises NotYet if it does not answer, BootFailed if it shows fewer."""
    if num_gpus == 0:
        return
    try:
        listing = commands.run("nvidia-smi", "--list-gpus", timeout_s=60)
    except CommandFailed as error:
        raise NotYet(
            f"NVIDIA's driver does not answer: {error}; use an image with the driver (a Deep Learning AMI), or set "
            "num_gpus to 0"
        ) from None
    found = sum(line.startswith("GPU ") for line in listing.splitlines())
    if found < num_gpus:
        raise BootFailed(
            f"nvidia-smi shows {found} GPUs and node.json says num_gpus={num_gpus}; correct gpus_per_node of the "
            "group, or have the machine replaced if a GPU has failed (see dmesg for Xid)"
        )


def check_efa(commands: Commands) -> None:
    """Return if libfabric sees an EFA device. Raises NotYet."""
    program = shutil.which("fi_info") or _EFA_PROGRAM
    try:
        listing = commands.run(program, "--provider", "efa", "--list", timeout_s=60)
    except CommandFailed as error:
        raise NotYet(
            f"EFA does not work: {error}; use an image with the EFA installer, interfaces of type efa or efa-only, and "
            "a security group that admits all traffic from and to itself; or set efa to false"
        ) from None
    if "efa" not in listing:
        raise BootFailed("efa is true and fi_info shows no EFA device; see the interfaces of the launch template")
