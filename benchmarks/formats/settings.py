"""What is measured: the text, and what a model is loaded as."""

from pathlib import Path
from typing import NamedTuple

from parallel.formats.kinds import Quantization

TEXT = Path(__file__).with_name("text.txt")


class Setting(NamedTuple):
    """What a model is loaded as."""

    dtype: str
    quantization: Quantization
    kv_dtype: str


SETTINGS = {
    "float32": Setting("float32", "none", "float32"),
    "bfloat16": Setting("bfloat16", "none", "bfloat16"),
    "bfloat16, KV int8": Setting("bfloat16", "none", "int8"),
    "int8 weights, float32": Setting("float32", "int8", "float32"),
    "fp8 weights, float32": Setting("float32", "fp8", "float32"),
    "int8": Setting("bfloat16", "int8", "bfloat16"),
    "int8, KV int8": Setting("bfloat16", "int8", "int8"),
    "the file's own": Setting("bfloat16", "auto", "bfloat16"),
    "the file's own, KV int8": Setting("bfloat16", "auto", "int8"),
}
