"""Open a checkpoint, check it, read slices of its tensors. Opening reads headers only; torch is imported by `read`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from parallel.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


class TensorInfo(NamedTuple):
    """One tensor as its file's header describes it."""

    shape: tuple[int, ...]
    """As Hugging Face has it: [out, in] for a linear weight."""
    dtype: str
    """safetensors or GGML name of the stored type: F32, BF16, F16, Q4_1, ..."""
    file: Path


class Checkpoint(Protocol):
    """The weights of one model, under Hugging Face names, whatever the file type."""

    @property
    def spec(self) -> ModelSpec:
        """The model's sizes."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor the model needs; exactly those, each of the shape the spec asks for."""
        ...

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> "Tensor":
        """Return a contiguous copy of a tensor, or only these rows (first dim) and columns (second dim), on the CPU.

        The dtype is the stored one, or float32 for quantised types. Reads no more of the file than the rows asked for.
        Raises CheckpointError naming file and tensor.
        """
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checked checkpoint at a local folder (safetensors) or a .gguf file; reads headers only.

    Raises CheckpointError for files and tensors that are missing, extra, mis-shaped, truncated or corrupt, and
    UnsupportedModel for what is not implemented.
    """
    raise NotImplementedError


def check_tensors(spec: ModelSpec, tensors: Mapping[str, TensorInfo], path: Path) -> None:
    """Return if `tensors` are exactly those of `spec`. Raises CheckpointError naming file and tensor."""
    raise NotImplementedError
