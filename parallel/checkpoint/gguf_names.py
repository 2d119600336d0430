"""GGUF's words for a model's sizes and tensors, in Hugging Face's."""

import re
from collections.abc import Mapping

from core.errors import CheckpointError, UnsupportedModel
from parallel.checkpoint.fields import Fields
from parallel.checkpoint.gguf_header import GGUFHeader, GGUFTensor
from parallel.models.spec import ModelSpec, RopeSpec

ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3.1 and later: what each rotary frequency is divided by. Part of the spec here, not a weight."""

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def hf_name(gguf_name: str) -> str:
    """Return Hugging Face's name of a tensor; a name that has none is returned as it is, to be refused as extra."""
    if match := _LAYER_TENSOR.fullmatch(gguf_name):
        module = _IN_LAYER.get(match[2])
        return f"model.layers.{int(match[1])}.{module}.{match[3]}" if module else gguf_name
    stem, _, kind = gguf_name.rpartition(".")
    return f"{_TOP[stem]}.{kind}" if stem in _TOP and kind == "weight" else gguf_name


def has_permuted_heads(header: GGUFHeader) -> bool:
    """Return whether rows of attn_q and attn_k interleave each head's halves, as llama.cpp wants them for `llama`."""
    return header.metadata.get("general.architecture") == "llama"


def spec_of_gguf(header: GGUFHeader, where: str, rope_factors: tuple[float, ...]) -> ModelSpec:
    """Build the spec from metadata and tensor table. Raises UnsupportedModel, CheckpointError naming the key."""
    general = Fields(header.metadata, where)
    name = general.text_or_none("general.architecture") or "(none)"
    if name not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"{where}: general.architecture={name!r} is not implemented; supported: {', '.join(_ARCHITECTURES)}"
        )
    _require_plain(general, name)
    sizes = _under(header.metadata, name, where)
    hidden_size = sizes.integer("embedding_length", most=2**24)
    num_heads = sizes.integer("attention.head_count", most=2**16)
    head_dim = sizes.integer_or_none("attention.key_length", most=2**16) or _even_share(sizes, hidden_size, num_heads)
    embedding = _required(header, "token_embd.weight", where)
    spec = ModelSpec(
        architecture=_ARCHITECTURES[name],
        hidden_size=hidden_size,
        num_layers=sizes.integer("block_count", most=4096),
        num_heads=num_heads,
        num_kv_heads=sizes.integer_or_none("attention.head_count_kv", most=2**16) or num_heads,
        head_dim=head_dim,
        intermediate_size=sizes.integer("feed_forward_length", most=2**24),
        # {arch}.vocab_size may be absent; the embedding always tells.
        vocab_size=embedding.shape[0],
        max_position_embeddings=sizes.integer("context_length"),
        rms_norm_eps=sizes.number("attention.layer_norm_rms_epsilon", above=0, most=1),
        rope=_rope(sizes, head_dim, rope_factors),
        tie_word_embeddings="output.weight" not in header.tensors,
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        o_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in header.tensors,
        qk_norm=name == "qwen3",
        sliding_window=sizes.integer_or_none("attention.sliding_window", least=0) or None,
        dtype={"F32": "float32", "F16": "float16"}.get(embedding.kind.name, "bfloat16"),
        bos_token_id=general.integer_or_none("tokenizer.ggml.bos_token_id", least=0),
        eos_token_ids=eos_token_ids_of_gguf(general),
    )
    return spec.checked(where)


def _under(metadata: Mapping[str, object], prefix: str, where: str) -> Fields:
    start = len(prefix) + 1
    values = {key[start:]: value for key, value in metadata.items() if key.startswith(prefix + ".")}
    return Fields(values, f"{where}: {prefix}")


def _require_plain(general: Fields, name: str) -> None:
    num_parts = general.integer_or_none("split.count", least=0) or 1
    if num_parts > 1:
        raise UnsupportedModel(
            f"{general.where}: one of {num_parts} parts of a split model; join them with `llama-gguf-split --merge`"
        )
    if num_experts := general.integer_or_none(f"{name}.expert_count", least=0):
        raise UnsupportedModel(
            f"{general.where}: a mixture of {num_experts} experts is not implemented; use a dense model"
        )


def _even_share(sizes: Fields, hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise sizes.wrong("attention.head_count", f"a divisor of embedding_length={hidden_size}")
    return hidden_size // num_heads


def _required(header: GGUFHeader, name: str, where: str) -> GGUFTensor:
    if name not in header.tensors:
        raise CheckpointError(f"{where}: tensor {name} ({hf_name(name)}) is missing; download the file again")
    return header.tensors[name]


def _rope(sizes: Fields, head_dim: int, factors: tuple[float, ...]) -> RopeSpec:
    for key in ("rope.dimension_count", "attention.value_length"):
        size = sizes.integer_or_none(key) or head_dim
        if size != head_dim:
            raise UnsupportedModel(f"{sizes.where}: {key}={size} is not implemented; it must be head_dim={head_dim}")
    theta = sizes.number_or_none("rope.freq_base", above=0, most=1e12) or 10000.0
    kind = sizes.text_or_none("rope.scaling.type") or "none"
    factor = sizes.number_or_none("rope.scaling.factor", above=0, most=1e6) or 1.0
    if kind not in ("none", "linear") or (factors and factor != 1.0):
        raise UnsupportedModel(f"{sizes.where}: rope.scaling.type={kind!r} is not implemented; supported: none, linear")
    if factors:
        return RopeSpec(theta, "factors", factors=factors)
    return RopeSpec(theta, "linear", factor=factor) if kind == "linear" else RopeSpec(theta)


def eos_token_ids_of_gguf(general: Fields) -> tuple[int, ...]:
    """Return the tokens that end a text, a turn or a message, sorted. Raises CheckpointError."""
    found = (general.integers(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom"))
    return tuple(sorted({token_id for ids in found for token_id in ids}))
