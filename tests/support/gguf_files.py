"""GGUF files made of tiny checkpoints, with llama.cpp's own conventions, written by the gguf package."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray

from parallel.models.spec import ModelSpec

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

Tensors = Mapping[str, NDArray[np.float32]]


def write_gguf(
    path: Path,
    spec: ModelSpec,
    tensors: Tensors,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    extra: Tensors | None = None,
    metadata: Mapping[str, int | float | str] | None = None,
    kinds: Mapping[str, GGMLQuantizationType] | None = None,
) -> Path:
    """Write `tensors` (Hugging Face names) as a GGUF file; matrices as `kind`, `extra` under its own names as F32.

    `metadata` overrides keys, `kinds` the kind of single tensors. Return the path.
    """
    architecture = ARCHITECTURES[spec.architecture]
    writer = GGUFWriter(path, architecture)
    for key, value in (_metadata(architecture, spec) | dict(metadata or {})).items():
        match value:
            case str():
                writer.add_string(key, value)
            case float():
                writer.add_float32(key, value)
            case _:
                writer.add_uint32(key, value)
    for name, values in tensors.items():
        stored = _permuted(name, values, spec) if architecture == "llama" else values
        kind_of = (kinds or {}).get(name, kind) if values.ndim == 2 else GGMLQuantizationType.F32
        _add(writer, gguf_name(name), stored, kind_of)
    for name, values in (extra or {}).items():
        _add(writer, name, values, GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a Hugging Face tensor."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.{kind}"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[module]}.{kind}"


def _metadata(architecture: str, spec: ModelSpec) -> dict[str, int | float | str]:
    sizes: dict[str, int | float | str] = {
        "block_count": spec.num_layers,
        "context_length": spec.max_position_embeddings,
        "embedding_length": spec.hidden_size,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": float(spec.rms_norm_eps),
        "rope.freq_base": float(spec.rope.theta),
        "rope.dimension_count": spec.head_dim,
    }
    found = {f"{architecture}.{key}": value for key, value in sizes.items()}
    return found | {f"tokenizer.ggml.{kind}_token_id": token for kind, token in _ends(spec)}


def _ends(spec: ModelSpec) -> list[tuple[str, int]]:
    return list(zip(("eos", "eot", "eom"), spec.eos_token_ids, strict=False))


def _permuted(name: str, values: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """llama.cpp, convert_hf_to_gguf.py, `LlamaModel.permute`."""
    num_heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}.get(name.split(".")[-2])
    if num_heads is None:
        return values
    halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _add(writer: GGUFWriter, name: str, values: NDArray[np.float32], kind: GGMLQuantizationType) -> None:
    if kind is GGMLQuantizationType.F32:
        writer.add_tensor(name, np.ascontiguousarray(values))
    elif kind is GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
