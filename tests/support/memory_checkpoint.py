"""A checkpoint of random tensors in memory, which remembers what was read of it."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from parallel.checkpoint.tensors import TensorInfo, expected_shapes
from parallel.models.spec import ModelSpec

FILE = Path("memory.safetensors")


class Read(NamedTuple):
    """One call of `read`."""

    name: str
    num_values: int


class MemoryCheckpoint:
    """A Checkpoint; `values` may be changed by a test."""

    def __init__(self, spec: ModelSpec) -> None:
        generator = torch.Generator().manual_seed(0)
        self.spec = spec
        self.values = {
            name: torch.randn(shape, generator=generator) / 4 + name.endswith("norm.weight")
            for name, shape in expected_shapes(spec).items()
        }
        self.tensors = {name: TensorInfo(tuple(value.shape), "F32", FILE) for name, value in self.values.items()}
        self.reads: list[Read] = []

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> Tensor:
        """Return a copy of the slice, and remember how large it was."""
        values = self.values[name][rows or slice(None)]
        values = (values if columns is None else values[:, columns]).clone()
        self.reads.append(Read(name, values.numel()))
        return values

    def read_quantised(self, name: str, rows: slice | None = None, columns: slice | None = None) -> None:
        """Return None: values are floats."""
