"""Codes of a checkpoint's matrix: those in the file, or made from its numbers."""

from parallel.checkpoint.reader import Checkpoint
from parallel.checkpoint.tensors import span
from parallel.formats.kinds import QuantFormat, stored_format
from parallel.formats.quantise import quantise_int8
from parallel.formats.quantised import QuantisedMatrix

_CHUNK_WEIGHTS = 2**22
"""Weights that are in memory as plain numbers at the same time: 16 MiB of float32."""


def read_codes(
    checkpoint: Checkpoint, quant_format: QuantFormat, name: str, rows: slice | None, columns: slice | None
) -> QuantisedMatrix:
    """Return a matrix, or a part of it, in `quant_format`: stored in it, or quantised now if that is INT8.

    The columns must be whole groups. Raises CheckpointError.
    """
    info = checkpoint.tensors[name]
    if stored_format(info.dtype) is quant_format:
        matrix = checkpoint.read_quantised(name, rows, columns)
        assert matrix is not None, f"{name}: columns {columns} cut a group"
        return matrix
    assert quant_format is QuantFormat.INT8, f"{name}: {quant_format} is not made here"
    top, bottom = span(info.shape[0], rows)
    num_rows = max(1, _CHUNK_WEIGHTS // info.shape[1])
    chunks = [slice(start, min(start + num_rows, bottom)) for start in range(top, bottom, num_rows)]
    return QuantisedMatrix.stack([_quantised(checkpoint, name, chunk, columns) for chunk in chunks])


def _quantised(checkpoint: Checkpoint, name: str, rows: slice, columns: slice | None) -> QuantisedMatrix:
    matrix = quantise_int8(checkpoint.read(name, rows, columns))
    assert matrix is not None, f"{name}: columns {columns} cut a group"
    return matrix
