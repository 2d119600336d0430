"""The header of a GGUF file: metadata and tensor table, parsed with every length checked against the file.

Layout (ggml `docs/gguf.md`): magic, version, tensor count, metadata count; the metadata; a row a tensor of name, sizes
(fastest first), type, offset; padding to `general.alignment`; the data. Parsed here rather than by the gguf package's
reader, which makes an object of every vocabulary entry (2.4 s for 49 k tokens, against 0.05 s) and trusts the lengths.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from core.errors import CheckpointError, UnsupportedModel

_MAX_TENSORS = 1_000_000
_MAX_ENTRIES = 100_000
_MAX_KEPT_ARRAY = 4096
"""Longer arrays are a tokenizer's; they are stepped over."""
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


class GGUFTensor(NamedTuple):
    """One row of the tensor table."""

    shape: tuple[int, ...]
    """Slowest first, as numpy and torch have it."""
    kind: GGMLQuantizationType
    start: int
    """First byte in the file."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns; a vector is a matrix of one column, as its slices are rows."""
        return (self.shape[0], 1) if len(self.shape) == 1 else (math.prod(self.shape[:-1]), self.shape[-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (all elements of the last dim)."""
        block_size, block_bytes = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block_size * block_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.row_bytes * math.prod(self.shape[:-1])


class GGUFHeader(NamedTuple):
    """What a GGUF file says before its data."""

    metadata: Mapping[str, object]
    """Numbers, flags, text and short lists; a long list (the vocabulary) is left out."""
    tensors: Mapping[str, GGUFTensor]


def read_gguf_header(path: Path, data: memoryview) -> GGUFHeader:
    """Return the header of the file mapped as `data`. Raises CheckpointError, UnsupportedModel."""
    cursor = _Cursor(path, data)
    if len(data) < 4 or bytes(data[:4]) != b"GGUF":
        raise CheckpointError(f"{path}: does not start with GGUF; it is empty, damaged or another kind of file")
    cursor.position = 4
    version = cursor.number("<I")
    if version not in (2, 3):
        raise UnsupportedModel(f"{path}: GGUF version {version} is not implemented; supported: 2 and 3, little-endian")
    num_tensors, num_entries = cursor.count(_MAX_TENSORS, "tensors"), cursor.count(_MAX_ENTRIES, "metadata entries")
    metadata: dict[str, object] = {}
    for _ in range(num_entries):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("<I"))
    return GGUFHeader(metadata, _read_table(cursor, num_tensors, metadata))


def _read_table(cursor: "_Cursor", num_tensors: int, metadata: Mapping[str, object]) -> dict[str, GGUFTensor]:
    rows = [_read_row(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise CheckpointError(f"{cursor.path}: general.alignment={alignment!r} is not a size; the file is damaged")
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for name, tensor in rows:
        if name in tensors:
            raise CheckpointError(f"{cursor.path}: tensor {name} appears twice; the file is damaged")
        placed = tensor._replace(start=data_start + tensor.start)
        if placed.start + placed.num_bytes > len(cursor.data):
            raise CheckpointError(
                f"{cursor.path}: tensor {name} ends at byte {placed.start + placed.num_bytes} but the file has"
                f" {len(cursor.data)}; it is truncated, download it again"
            )
        tensors[name] = placed
    return tensors


def _read_row(cursor: "_Cursor") -> tuple[str, GGUFTensor]:
    """Return a tensor with `start` still counted from the start of the data."""
    name = cursor.text()
    sizes = [cursor.number("<Q") for _ in range(cursor.number("<I", most=4))]
    kind_id, offset = cursor.number("<I"), cursor.number("<Q")
    try:
        kind = GGMLQuantizationType(kind_id)
    except ValueError:
        raise UnsupportedModel(f"{cursor.path}: tensor {name} is of unknown type {kind_id}; update gguf") from None
    block_size, _ = GGML_QUANT_SIZES[kind]
    if not sizes or not all(1 <= size < 2**40 for size in sizes) or sizes[0] % block_size:
        raise CheckpointError(
            f"{cursor.path}: tensor {name} of type {kind.name} has sizes {sizes}; the first must be a multiple of"
            f" {block_size} and all positive"
        )
    return name, GGUFTensor(tuple(reversed(sizes)), kind, offset)


class _Cursor:
    """Reads forward through a mapped file and never past its end."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def number(self, layout: str, most: int | None = None) -> int:
        """Return the next number. Raises CheckpointError at the end of the file or over `most`."""
        try:
            (value,) = struct.unpack_from(layout, self.data, self.position)
        except struct.error:
            raise self._truncated() from None
        if most is not None and value > most:
            raise CheckpointError(f"{self.path}: {value} at byte {self.position} is over {most}; the file is damaged")
        self.position += struct.calcsize(layout)
        return value

    def count(self, most: int, what: str) -> int:
        """Return the next 64-bit count. Raises CheckpointError naming `what` if there are more than `most`."""
        value = self.number("<Q")
        if value > most:
            raise CheckpointError(f"{self.path}: announces {value} {what}, at most {most} are read; it is damaged")
        return value

    def text(self) -> str:
        """Return the next string; bytes that are not UTF-8 become replacement characters."""
        start, stop = self._step_over_text()
        return bytes(self.data[start:stop]).decode("utf-8", errors="replace")

    def value(self, kind: int) -> object:
        """Return the next metadata value; None for a list that is too long to keep."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise CheckpointError(
                f"{self.path}: metadata of unknown type {kind} at byte {self.position}; it is damaged"
            )
        return self.number(_SCALARS[kind])

    def _array(self) -> list[object] | None:
        kind, size = self.number("<I"), self.number("<Q")
        # Every item takes a byte or more, so a longer list cannot be true.
        if size > len(self.data) - self.position:
            raise self._truncated()
        if kind == _ARRAY:
            raise CheckpointError(f"{self.path}: a list of lists at byte {self.position}; the file is damaged")
        if size <= _MAX_KEPT_ARRAY:
            return [self.value(kind) for _ in range(size)]
        if kind == _STRING:
            for _ in range(size):
                self._step_over_text()
        else:
            self._step(size * struct.calcsize(_SCALARS.get(kind, "<Q")))
        return None

    def _step_over_text(self) -> tuple[int, int]:
        size = self.number("<Q")
        return self._step(size)

    def _step(self, size: int) -> tuple[int, int]:
        start, stop = self.position, self.position + size
        if stop > len(self.data):
            raise self._truncated()
        self.position = stop
        return start, stop

    def _truncated(self) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: the header does not end within the file's {len(self.data)} bytes; it is truncated or"
            " damaged, download it again"
        )
