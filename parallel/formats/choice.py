"""Which format a matrix of the model is kept in: decided from headers, by ranks and leader alike. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from parallel.checkpoint.tensors import TensorInfo
from parallel.formats.kinds import QuantFormat, Quantization, is_group_aligned, stored_format
from parallel.models.spec import ModelSpec
from parallel.sharding import RankShard


class Matrix(NamedTuple):
    """One product of the model on a rank: slices of checkpoint tensors, outputs after outputs."""

    tensors: tuple[str, ...]
    num_outputs: int
    columns: range
    """Inputs, in the tensors' own numbering."""
    is_inner: bool
    """Part of a layer; the embedding and the LM head are not."""


def matrices(spec: ModelSpec, shard: RankShard) -> Iterator[Matrix]:
    """Yield every matrix that a rank multiplies with or looks rows up in; a tied head is the embedding."""
    hidden, head_dim = range(spec.hidden_size), spec.head_dim
    heads = range(shard.query_heads.start * head_dim, shard.query_heads.stop * head_dim)
    num_qkv = len(heads) + 2 * len(shard.kv_heads) * head_dim
    for layer in range(spec.num_layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        qkv = (f"{attention}.q_proj.weight", f"{attention}.k_proj.weight", f"{attention}.v_proj.weight")
        yield Matrix(qkv, num_qkv, hidden, is_inner=True)
        yield Matrix((f"{attention}.o_proj.weight",), spec.hidden_size, heads, is_inner=True)
        gate_up = (f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight")
        yield Matrix(gate_up, 2 * len(shard.ffn), hidden, is_inner=True)
        yield Matrix((f"{mlp}.down_proj.weight",), spec.hidden_size, shard.ffn, is_inner=True)
    yield Matrix(("model.embed_tokens.weight",), len(shard.vocab), hidden, is_inner=False)
    if not spec.tie_word_embeddings:
        yield Matrix(("lm_head.weight",), len(shard.vocab), hidden, is_inner=False)


def format_of(matrix: Matrix, tensors: Mapping[str, TensorInfo], quantization: Quantization) -> QuantFormat | None:
    """Return the format that a matrix is kept in, None for plain numbers.

    `auto` keeps what all of the matrix's tensors are stored in, `int8` has every matrix in INT8, `fp8` those inside
    layers in FP8. A matrix whose inputs on this rank are no whole groups is plain.
    """
    match quantization:
        case "none":
            return None
        case "fp8":
            return QuantFormat.FP8 if matrix.is_inner else None
        case "int8":
            wanted = QuantFormat.INT8
        case "auto":
            wanted = common_format([tensors[name].dtype for name in matrix.tensors])
    return wanted if is_group_aligned(matrix.columns.start, matrix.columns.stop) else None


def common_format(dtypes: Sequence[str]) -> QuantFormat | None:
    """Return the format that all of these stored types are in, None if they differ or are floats."""
    formats = {stored_format(dtype) for dtype in dtypes}
    return formats.pop() if len(formats) == 1 else None
