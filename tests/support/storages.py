"""Storages of the tier that runs everywhere."""

import torch

from parallel.layers.shard import Storage
from parallel.ops.torch_ops import TorchOps


def torch_storage(dtype: torch.dtype = torch.float32) -> Storage:
    """Return tier 0 on the CPU, weights and activations in `dtype`."""
    return Storage(dtype, torch.device("cpu"), TorchOps(dtype))
