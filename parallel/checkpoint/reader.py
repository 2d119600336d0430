"""Open a checkpoint, check it, read slices of its tensors. Opening reads headers only; torch is imported by `read`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from core.errors import CheckpointError
from parallel.checkpoint.gguf_file import GGUFCheckpoint
from parallel.checkpoint.safetensors_files import SafetensorsCheckpoint
from parallel.checkpoint.tensors import TensorInfo, check_tensors, expected_shapes
from parallel.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from parallel.formats.quantised import QuantisedMatrix

__all__ = ["Checkpoint", "TensorInfo", "check_tensors", "expected_shapes", "open_checkpoint"]


class Checkpoint(Protocol):
    """The weights of one model, under Hugging Face names, whatever the file type. Not thread-safe."""

    @property
    def spec(self) -> ModelSpec:
        """The model's sizes."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor the model needs; exactly those, each of the shape the spec asks for."""
        ...

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> "Tensor":
        """Return a tensor, or only these rows (first dim) and columns (second dim), contiguous, on the CPU.

        The dtype is the stored one, or float32 for quantised types. Reads no more of the file than the rows asked for.
        The result may be a view of the mapped file: copy it into place, never change it.
        Raises CheckpointError naming file and tensor, KeyError for a name that is not in `tensors`.
        """
        ...

    def read_quantised(
        self, name: str, rows: slice | None = None, columns: slice | None = None
    ) -> "QuantisedMatrix | None":
        """Return a matrix, or a part of it, in the codes it is stored in, in memory of its own.

        None if its stored type has no such form (`formats.kinds.stored_format`) or the columns cut a group: `read` it
        then. The dequantised result equals what `read` gives.
        """
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checked checkpoint at a local folder (safetensors) or a .gguf file; reads headers only.

    Raises CheckpointError for files and tensors that are missing, extra, mis-shaped, truncated or corrupt, and
    UnsupportedModel for what is not implemented.
    """
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path}: does not exist; check model.source")
    if path.suffix != ".gguf":
        raise CheckpointError(f"{path}: neither a folder nor a .gguf file; give the folder that holds config.json")
    return GGUFCheckpoint(path)
