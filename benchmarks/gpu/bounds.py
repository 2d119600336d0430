"""What a step cannot be faster than: the bytes it must read and the arithmetic it must do."""

from typing import NamedTuple

from parallel.models.spec import ModelSpec

FORMAT_BYTES = {"bf16": 2.0, "fp8": 1.0}
"""Of a weight inside the layers; the head stays in bf16."""
_SCALE_BYTES = 4
_KV_BYTES = {"bf16": 2, "int8": 1}


class Rates(NamedTuple):
    """What the card was measured to do."""

    copy_bytes_per_s: float
    """Read and written bytes both counted."""
    matmul_flops_per_s: float


def inner_weights(spec: ModelSpec) -> int:
    """Return how many weights the matrices of all layers have."""
    query_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    attention = spec.hidden_size * (2 * query_width + 2 * kv_width)
    return spec.num_layers * (attention + 3 * spec.hidden_size * spec.intermediate_size)


def head_weights(spec: ModelSpec) -> int:
    """Return how many weights the head has."""
    return spec.hidden_size * spec.vocab_size


def kv_bytes_per_token(spec: ModelSpec, kv_format: str) -> int:
    """Return what attention reads of one cached token, in all layers."""
    scale_bytes = _SCALE_BYTES if kv_format == "int8" else 0
    return 2 * spec.num_layers * spec.num_kv_heads * (spec.head_dim * _KV_BYTES[kv_format] + scale_bytes)


def decode_bytes(spec: ModelSpec, weight_format: str, kv_format: str, num_rows: int, context_len: int) -> float:
    """Return what a decode step reads at least: every matrix once, and each row's context."""
    weights = inner_weights(spec) * FORMAT_BYTES[weight_format] + head_weights(spec) * FORMAT_BYTES["bf16"]
    return weights + num_rows * context_len * kv_bytes_per_token(spec, kv_format)


def prefill_flops(spec: ModelSpec, num_tokens: int) -> float:
    """Return the arithmetic of one prompt: products of every token, causal attention, one row of logits."""
    products = 2 * inner_weights(spec) * num_tokens + 2 * head_weights(spec)
    # Scores and weighted values are two products each; half of each square lies behind the diagonal.
    attention = 2 * spec.num_layers * spec.num_heads * spec.head_dim * num_tokens**2
    return float(products + attention)


def share(least_s: float, measured_s: float) -> float:
    """Return how much of the limit was reached; 1 is all of it."""
    return round(least_s / measured_s, 4)
