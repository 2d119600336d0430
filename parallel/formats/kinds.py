"""The formats that weights are kept in, and their sizes. No torch."""

from enum import StrEnum
from fractions import Fraction

GROUP_SIZE = 32
"""Inputs that share a scale."""


class QuantFormat(StrEnum):
    """How many bits a code has."""

    INT8 = "int8"
    """w = scale * code, code -127 to 127: 8.5 bits a weight. GGUF Q8_0."""
    INT4 = "int4"
    """w = scale * code + minimum, code 0 to 15: 5 bits a weight. GGUF Q4_1, and Q4_0 with minimum = -8 * scale."""

    @property
    def bytes_per_weight(self) -> Fraction:
        """Memory of a weight with its part of the group's float16 scale and minimum, in the form that is multiplied."""
        return _BITS[self] / 8


_BITS = {QuantFormat.INT8: 8 + Fraction(16, GROUP_SIZE), QuantFormat.INT4: 4 + Fraction(32, GROUP_SIZE)}

_STORED = {"Q8_0": QuantFormat.INT8, "Q4_0": QuantFormat.INT4, "Q4_1": QuantFormat.INT4}


def stored_format(dtype: str) -> QuantFormat | None:
    """Return the format that a tensor of this stored type is in, None for a type that is read as floats."""
    return _STORED.get(dtype)


def is_group_aligned(start: int, stop: int) -> bool:
    """Return whether a part of a matrix's inputs holds whole groups."""
    return start % GROUP_SIZE == 0 and stop % GROUP_SIZE == 0
