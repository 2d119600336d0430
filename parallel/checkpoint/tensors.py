"""Which tensors a model is made of, and the check that a checkpoint holds exactly those."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from core.errors import CheckpointError
from parallel.models.spec import ModelSpec

_HARMLESS = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
"""Old checkpoints carry the rotary frequencies, which are computed from the configuration."""


class TensorInfo(NamedTuple):
    """One tensor as its file's header describes it."""

    shape: tuple[int, ...]
    """As Hugging Face has it: [out, in] for a linear weight."""
    dtype: str
    """safetensors or GGML name of the stored type: F32, BF16, F16, Q4_1, ..."""
    file: Path


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return every tensor that `spec` asks for, by Hugging Face name."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, spec.hidden_size)}
    for layer in range(spec.num_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer_shapes(spec).items()}
    shapes["model.norm.weight"] = (spec.hidden_size,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.hidden_size)
    return shapes


def _layer_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    query, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    linears = {
        "self_attn.q_proj": (query, spec.hidden_size, spec.qkv_bias),
        "self_attn.k_proj": (kv, spec.hidden_size, spec.qkv_bias),
        "self_attn.v_proj": (kv, spec.hidden_size, spec.qkv_bias),
        "self_attn.o_proj": (spec.hidden_size, query, spec.o_bias),
        "mlp.gate_proj": (spec.intermediate_size, spec.hidden_size, spec.mlp_bias),
        "mlp.up_proj": (spec.intermediate_size, spec.hidden_size, spec.mlp_bias),
        "mlp.down_proj": (spec.hidden_size, spec.intermediate_size, spec.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (spec.hidden_size,),
        "post_attention_layernorm.weight": (spec.hidden_size,),
    }
    for name, (num_out, num_in, has_bias) in linears.items():
        shapes[f"{name}.weight"] = (num_out, num_in)
        if has_bias:
            shapes[f"{name}.bias"] = (num_out,)
    if spec.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (spec.head_dim,)
    return shapes


def check_tensors(spec: ModelSpec, tensors: Mapping[str, TensorInfo], path: Path) -> None:
    """Return if `tensors` are those of `spec`, harmless leftovers aside. Raises CheckpointError naming both."""
    expected = expected_shapes(spec)
    for name, shape in expected.items():
        info = tensors.get(name)
        if info is None:
            raise CheckpointError(f"{path}: tensor {name} is missing{_others(expected.keys() - tensors.keys())}")
        if info.shape != shape:
            raise CheckpointError(
                f"{info.file}: tensor {name} has shape {list(info.shape)}, the configuration asks for {list(shape)};"
                " the file belongs to another model"
            )
    extra = sorted(name for name in tensors.keys() - expected.keys() if not _is_harmless(spec, name))
    if extra:
        raise CheckpointError(
            f"{tensors[extra[0]].file}: tensor {extra[0]} is not part of {spec.architecture}{_others(extra)};"
            " the configuration belongs to another model"
        )


def _is_harmless(spec: ModelSpec, name: str) -> bool:
    return bool(_HARMLESS.search(name)) or (spec.tie_word_embeddings and name == "lm_head.weight")


def _others(names: set[str] | list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def span(size: int, part: slice | None) -> tuple[int, int]:
    """Return start and stop of a contiguous part of a dimension, everything for None."""
    start, stop, step = (part or slice(None)).indices(size)
    assert step == 1 and start <= stop, f"{part} is not a contiguous part of {size}"
    return start, stop
