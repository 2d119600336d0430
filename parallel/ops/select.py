"""Which tier computes on this rank."""

from typing import NamedTuple

import torch

from parallel.ops.base import Ops
from parallel.ops.choice import OpChoice
from parallel.ops.torch_ops import TorchOps


class ChosenOps(NamedTuple):
    """A tier and the reasons for it."""

    ops: Ops
    choices: list[OpChoice]


def fastest_tier(device: torch.device) -> str:
    """Return the name of the fastest tier of this machine, by which the leader divides memory before a model loads."""
    return TorchOps.name


def choose_ops(device: torch.device, dtype: torch.dtype) -> ChosenOps:
    """Return the fastest tier that serves this device and dtype, and for each operation what that is."""
    return ChosenOps(TorchOps(dtype), [])
