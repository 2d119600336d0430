"""A machine whose devices are not all there does not join."""

import pytest

from cluster.node.devices import check_efa, check_gpus
from cluster.node.errors import BootFailed, NotYet
from tests.support.node_machines import RecordedCommands, failed

TWO_GPUS = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)\n"


def test_machine_without_gpus_needs_no_driver():
    check_gpus(RecordedCommands(), 0)


def test_every_gpu_must_be_there():
    commands = RecordedCommands({"nvidia-smi --list-gpus": TWO_GPUS})
    check_gpus(commands, 2)
    with pytest.raises(BootFailed, match="shows 2 GPUs and node.json says num_gpus=8.*replaced"):
        check_gpus(commands, 8)


def test_driver_that_is_missing_or_broken_is_explained():
    with pytest.raises(NotYet, match="driver does not answer.*nvidia-smi is not installed.*Deep Learning AMI"):
        check_gpus(RecordedCommands(), 1)
    broken = failed("nvidia-smi", exit_code=9, output="couldn't communicate with the NVIDIA driver")
    with pytest.raises(NotYet, match="couldn't communicate with the NVIDIA driver"):
        check_gpus(RecordedCommands({"nvidia-smi": broken}), 1)


def test_fabric_adapter_must_be_seen_by_libfabric():
    check_efa(RecordedCommands({"fi_info": "efa: 1.31\n"}))
    with pytest.raises(NotYet, match="EFA does not work.*security group"):
        check_efa(RecordedCommands({"fi_info": failed("fi_info", output="fi_getinfo: -61 (No data available)")}))
    with pytest.raises(BootFailed, match="shows no EFA device"):
        check_efa(RecordedCommands({"fi_info": "tcp\n"}))
