"""The formats that weights are kept in, and their sizes. No torch."""

from enum import StrEnum
from typing import Literal

GROUP_SIZE = 32
"""Inputs that share a scale in INT8 and INT4."""

Quantization = Literal["auto", "none", "int8", "fp8"]
"""What a configuration asks for: the file's own formats, none, or one for every matrix (see `choice.format_of`)."""


class QuantFormat(StrEnum):
    """What a code stands for. Codes share scales, and what a scale covers is a group."""

    INT8 = "int8"
    """w = scale * code, code -128 to 127, float16 scales of 32 inputs: 8.5 bits a weight. GGUF Q8_0."""
    INT4 = "int4"
    """w = scale * code + minimum, code 0 to 15, float16 scales and minimums of 32 inputs: 5 bits a weight. GGUF Q4_1,
    and Q4_0 with minimum = -8 * scale."""
    FP8 = "fp8"
    """w = scale * code, code a float8 (e4m3), a float32 scale of all inputs of an output: 8 bits a weight."""

    def num_bytes(self, num_outputs: int, num_inputs: int) -> int:
        """Return the memory of a matrix in the form that is multiplied, scales included."""
        num_groups = num_outputs * (num_inputs // GROUP_SIZE)
        match self:
            case QuantFormat.INT8:
                return num_groups * (GROUP_SIZE + 2)
            case QuantFormat.INT4:
                return num_groups * (GROUP_SIZE // 2 + 4)
            case QuantFormat.FP8:
                return num_outputs * (num_inputs + 4)


_STORED = {"Q8_0": QuantFormat.INT8, "Q4_0": QuantFormat.INT4, "Q4_1": QuantFormat.INT4}


def stored_format(dtype: str) -> QuantFormat | None:
    """Return the format that a tensor of this stored type is in, None for a type that is read as floats."""
    return _STORED.get(dtype)


def is_group_aligned(start: int, stop: int) -> bool:
    """Return whether inputs start to stop of a matrix are whole groups of 32."""
    return start % GROUP_SIZE == 0 and stop % GROUP_SIZE == 0
