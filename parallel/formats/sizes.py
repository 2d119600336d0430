"""How much memory a rank's weights take in the formats they are kept in. No torch."""

from collections.abc import Mapping
from typing import NamedTuple

from parallel.checkpoint.tensors import TensorInfo
from parallel.formats.choice import format_of, matrices
from parallel.formats.kinds import QuantFormat, Quantization
from parallel.models.spec import ModelSpec
from parallel.sharding import RankShard

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}

_MULTIPLIED = {
    "torch": frozenset[QuantFormat](),
    "cpu": frozenset({QuantFormat.INT8, QuantFormat.INT4}),
    "cuda": frozenset(QuantFormat),
}
"""What each tier multiplies by in its own codes; weights in other formats it keeps as plain numbers."""


class Holding(NamedTuple):
    """How a tier keeps weights and activations."""

    multiplied: frozenset[QuantFormat]
    plain_bytes: int
    """Of a weight that is in none of the formats."""
    activation_bytes: int
    """Of a number between operations, of a bias, of a norm's weight."""
    copies_tied_head: bool
    """Rows cannot be looked up in the form that the head is multiplied in, so both forms are kept."""

    @classmethod
    def of(cls, tier: str, device: str, dtype: str) -> "Holding":
        """Return what `tier` does for a model that runs in `dtype`."""
        size = DTYPE_BYTES[dtype]
        is_packed_by_torch = tier == "torch" and device == "cpu" and dtype == "bfloat16"
        return cls(_MULTIPLIED[tier], size, 4 if tier == "cpu" else size, is_packed_by_torch)


def weight_bytes(
    spec: ModelSpec,
    shard: RankShard,
    tensors: Mapping[str, TensorInfo],
    quantization: Quantization,
    holding: Holding,
) -> int:
    """Return the memory of all weights of a rank."""
    num_in_vectors, num_bytes = shard.num_parameters(spec), 0
    for matrix in matrices(spec, shard):
        num_weights = matrix.num_outputs * len(matrix.columns)
        num_in_vectors -= num_weights
        quant_format = format_of(matrix, tensors, quantization)
        if quant_format is not None and quant_format in holding.multiplied:
            num_bytes += quant_format.num_bytes(matrix.num_outputs, len(matrix.columns))
            continue
        is_tied = spec.tie_word_embeddings and not matrix.is_inner
        # Embedding and head would each make plain numbers of a quantised weight.
        is_held_twice = is_tied and (holding.copies_tied_head or quant_format is not None)
        num_bytes += holding.plain_bytes * num_weights * (2 if is_held_twice else 1)
    return num_bytes + num_in_vectors * holding.activation_bytes
