"""How many bytes of weights a decode step reads: every matrix once, the embedding as the output layer."""

import math

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from benchmarks.peers.home import SOURCE
from benchmarks.peers.our_config import Weights
from parallel.checkpoint.reader import open_checkpoint
from parallel.checkpoint.source import resolve_checkpoint
from parallel.checkpoint.tensors import TensorInfo

_TYPES: dict[Weights, str | None] = {"bf16": "BF16", "int8": "Q8_0", "int4": None}
"""GGML's type of all matrices; None where each keeps the type it has in the file."""


def bytes_read_per_step(weights: Weights, source: str = SOURCE) -> int:
    """Return the bytes of the model's matrices in that form. Reads the checkpoint's header only."""
    checkpoint = open_checkpoint(resolve_checkpoint(source))
    matrices = [
        info
        for name, info in checkpoint.tensors.items()
        # Of an embedding that is not the output layer too, a step reads a few rows.
        if len(info.shape) == 2 and (checkpoint.spec.tie_word_embeddings or name != "model.embed_tokens.weight")
    ]
    return sum(_bytes(info, _TYPES[weights] or info.dtype) for info in matrices)


def _bytes(info: TensorInfo, type_name: str) -> int:
    block_size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    return math.prod(info.shape) // block_size * block_bytes
