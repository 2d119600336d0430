"""GGUF checkpoints: mapped, never read whole; a slice of a tensor is made from its own bytes only."""

import functools
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from core.errors import CheckpointError, UnsupportedModel
from parallel.checkpoint.gguf_blocks import split_blocks
from parallel.checkpoint.gguf_header import GGUFTensor, read_gguf_header
from parallel.checkpoint.gguf_names import ROPE_FACTORS, has_permuted_heads, hf_name, spec_of_gguf
from parallel.checkpoint.tensors import TensorInfo, check_tensors, expected_shapes, span
from parallel.formats.kinds import is_group_aligned, stored_format
from parallel.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from parallel.formats.quantised import QuantisedMatrix

_FLOATS = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    # numpy has no bfloat16: carried as its bits, and viewed as bfloat16 by torch.
    GGMLQuantizationType.BF16: np.dtype("<i2"),
}
_PIECE_BYTES = 4 * 2**20
"""Dequantising makes temporaries of several times its input; pieces of this size keep them in the CPU's cache."""


class GGUFCheckpoint:
    """One .gguf file. Safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        """Map the file, read and check its header. Raises CheckpointError, UnsupportedModel."""
        self._path = path
        self._data = _map(path)
        header = read_gguf_header(path, memoryview(self._data))
        self._spec = spec_of_gguf(header, str(path), self._rope_factors(header.tensors))
        self._stored = {hf_name(name): tensor for name, tensor in header.tensors.items() if name != ROPE_FACTORS}
        found = {name: TensorInfo(tensor.shape, tensor.kind.name, path) for name, tensor in self._stored.items()}
        check_tensors(self._spec, found, path)
        self._tensors = {name: found[name] for name in expected_shapes(self._spec)}
        self._has_permuted_heads = has_permuted_heads(header)
        _require_readable(path, self._stored)

    @property
    def spec(self) -> ModelSpec:
        """The model's sizes."""
        return self._spec

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor the model needs."""
        return self._tensors

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> "Tensor":
        """Return a tensor or a part of it: float32 if it is stored quantised, its own dtype otherwise."""
        import torch

        stored, part = self._part(name, rows, columns)
        values = _floats(self._row_bytes(name, part), stored.kind, part)
        tensor = torch.from_numpy(values if len(stored.shape) > 1 else values.reshape(-1))
        return tensor.view(torch.bfloat16) if stored.kind is GGMLQuantizationType.BF16 else tensor

    def read_quantised(
        self, name: str, rows: slice | None = None, columns: slice | None = None
    ) -> "QuantisedMatrix | None":
        """Return a matrix or a part of it in the file's own codes; None unless they are Q8_0, Q4_0 or Q4_1.

        None also for columns that are not whole groups.
        """
        import torch

        from parallel.formats.quantised import QuantisedMatrix

        stored, part = self._part(name, rows, columns)
        quant_format = stored_format(stored.kind.name)
        if quant_format is None or not is_group_aligned(part.left, part.right):
            return None
        codes_RI, scales_RG, minimums_RG = split_blocks(self._row_bytes(name, part), stored.kind)
        return QuantisedMatrix(
            quant_format,
            torch.from_numpy(codes_RI),
            torch.from_numpy(scales_RG),
            None if minimums_RG is None else torch.from_numpy(minimums_RG),
        )

    def _part(self, name: str, rows: slice | None, columns: slice | None) -> "tuple[GGUFTensor, _Part]":
        stored = self._stored[name]
        num_rows, num_columns = stored.matrix_shape
        return stored, _Part(*span(num_rows, rows), *span(num_columns, columns))

    def _row_bytes(self, name: str, part: "_Part") -> NDArray[np.uint8]:
        """Return the blocks that a part meets, rows in Hugging Face's order; may be a view of the file."""
        stored = self._stored[name]
        data = np.frombuffer(self._data, np.uint8, stored.num_bytes, stored.start)
        rows_RB = data.reshape(stored.matrix_shape[0], -1)[:, part.bytes_of(stored.kind)]
        if not (self._has_permuted_heads and re.search(r"\.self_attn\.[qk]_proj\.", name)):
            return rows_RB[part.start : part.stop]
        # Rows change places within a head, so whole heads are read and cut afterwards.
        head_dim = self._spec.head_dim
        first, last = part.start // head_dim * head_dim, -(-part.stop // head_dim) * head_dim
        return _unpermuted(rows_RB[first:last], head_dim)[part.start - first : part.stop - first]

    def _rope_factors(self, tensors: Mapping[str, GGUFTensor]) -> tuple[float, ...]:
        stored = tensors.get(ROPE_FACTORS)
        if stored is None:
            return ()
        factors = np.frombuffer(self._data, np.uint8, stored.num_bytes, stored.start)
        if stored.kind is not GGMLQuantizationType.F32 or not (factors.view("<f4") > 0).all():
            raise CheckpointError(f"{self._path}: tensor {ROPE_FACTORS} must be F32 and positive; the file is damaged")
        return tuple(float(factor) for factor in factors.view("<f4"))


class _Part(NamedTuple):
    """Rows start to stop, columns left to right."""

    start: int
    stop: int
    left: int
    right: int

    def bytes_of(self, kind: GGMLQuantizationType) -> slice:
        """Return which bytes of a row hold the blocks that the columns meet."""
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
        return slice(self.left // block_size * block_bytes, -(-self.right // block_size) * block_bytes)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path and permissions") from None
    except ValueError:
        raise CheckpointError(f"{path}: the file is empty; download it again") from None


def _require_readable(path: Path, stored: Mapping[str, GGUFTensor]) -> None:
    for name, tensor in stored.items():
        if tensor.kind in _FLOATS:
            continue
        if len(tensor.shape) == 1:
            raise CheckpointError(
                f"{path}: tensor {name} is a vector of type {tensor.kind.name}; it must be F32, F16 or BF16"
            )
        if not _can_dequantise(tensor.kind):
            raise UnsupportedModel(f"{path}: tensor {name} is of type {tensor.kind.name}, which gguf cannot dequantise")


@functools.cache
def _can_dequantise(kind: GGMLQuantizationType) -> bool:
    _, block_bytes = GGML_QUANT_SIZES[kind]
    try:
        dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _floats(rows_RB: NDArray[np.uint8], kind: GGMLQuantizationType, part: _Part) -> NDArray[np.generic]:
    """Return the values of a part, in memory of their own, from the blocks that it meets."""
    if dtype := _FLOATS.get(kind):
        return rows_RB.view(dtype).copy()
    block_size, _ = GGML_QUANT_SIZES[kind]
    first = part.left // block_size * block_size
    values = np.empty((len(rows_RB), part.right - part.left), np.float32)
    num_rows = max(1, _PIECE_BYTES // max(1, rows_RB.shape[1]))
    for top in range(0, len(rows_RB), num_rows):
        piece = np.ascontiguousarray(rows_RB[top : top + num_rows])
        values[top : top + num_rows] = dequantize(piece, kind)[:, part.left - first : part.right - first]
    return values


def _unpermuted(rows: NDArray[np.uint8], head_dim: int) -> NDArray[np.uint8]:
    """Return whole heads with rows in Hugging Face's order.

    llama.cpp's converter stores row i of a head's first half and row i of its second half side by side
    (`LlamaModel.permute` in convert_hf_to_gguf.py), because its rotation turns neighbours.
    """
    num_rows, num_columns = rows.shape
    pairs = rows.reshape(num_rows // head_dim, head_dim // 2, 2, num_columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(num_rows, num_columns)
