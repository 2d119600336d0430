"""GGUF's blocks of 32 weights taken apart into codes and scales; no weight is computed.

A block is a float16 scale, in Q4_1 a float16 minimum, and the codes. Codes of 4 bits lie two in a byte: the block's
first half in the low bits, its second half in the high bits (ggml, `ggml-quants.c`, dequantize_row_q4_0).

R rows, I columns, G = I / 32 groups, B bytes of a row.
"""

from typing import NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from parallel.formats.kinds import GROUP_SIZE

_HALF = np.dtype("<f2")
_Q4_0_MIDDLE = 8
"""Q4_0 has w = scale * (code - 8)."""


class Blocks(NamedTuple):
    """Rows of a quantised matrix; arrays of their own."""

    codes_RI: NDArray[np.int8] | NDArray[np.uint8]
    scales_RG: NDArray[np.float16]
    minimums_RG: NDArray[np.float16] | None


def split_blocks(rows_RB: NDArray[np.uint8], kind: GGMLQuantizationType) -> Blocks:
    """Return the codes of whole blocks of a kind that has a `stored_format`."""
    return _SPLIT[kind](rows_RB)


def _split_q8_0(rows_RB: NDArray[np.uint8]) -> Blocks:
    blocks = rows_RB.reshape(len(rows_RB), -1, _HALF.itemsize + GROUP_SIZE)
    codes = blocks[..., _HALF.itemsize :].copy().view(np.int8)
    return Blocks(codes.reshape(len(blocks), -1), _halves(blocks, 0), None)


def _split_q4_0(rows_RB: NDArray[np.uint8]) -> Blocks:
    blocks = rows_RB.reshape(len(rows_RB), -1, _HALF.itemsize + GROUP_SIZE // 2)
    scales_RG = _halves(blocks, 0)
    return Blocks(_nibbles(blocks[..., _HALF.itemsize :]), scales_RG, scales_RG * np.float16(-_Q4_0_MIDDLE))


def _split_q4_1(rows_RB: NDArray[np.uint8]) -> Blocks:
    blocks = rows_RB.reshape(len(rows_RB), -1, 2 * _HALF.itemsize + GROUP_SIZE // 2)
    return Blocks(_nibbles(blocks[..., 2 * _HALF.itemsize :]), _halves(blocks, 0), _halves(blocks, _HALF.itemsize))


_SPLIT = {
    GGMLQuantizationType.Q8_0: _split_q8_0,
    GGMLQuantizationType.Q4_0: _split_q4_0,
    GGMLQuantizationType.Q4_1: _split_q4_1,
}


def _halves(blocks: NDArray[np.uint8], start: int) -> NDArray[np.float16]:
    return blocks[..., start : start + _HALF.itemsize].copy().view(_HALF)[..., 0]


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    num_rows, num_groups, num_bytes = packed.shape
    codes = np.empty((num_rows, num_groups, GROUP_SIZE), np.uint8)
    np.bitwise_and(packed, 15, out=codes[..., :num_bytes])
    np.right_shift(packed, 4, out=codes[..., num_bytes:])
    return codes.reshape(num_rows, -1)
