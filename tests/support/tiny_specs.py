"""Model specs of any size, without a checkpoint."""

from dataclasses import replace
from typing import TypedDict, Unpack

from parallel.models.spec import ModelSpec, RopeSpec


class SpecFields(TypedDict, total=False):
    """What tests change."""

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rope: RopeSpec
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool


_TINY = ModelSpec(
    architecture="LlamaForCausalLM",
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    vocab_size=64,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    rope=RopeSpec(),
    tie_word_embeddings=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    sliding_window=None,
    dtype="float32",
    bos_token_id=1,
    eos_token_ids=(2,),
)


def a_spec(**fields: Unpack[SpecFields]) -> ModelSpec:
    """Return a tiny Llama with `fields` changed."""
    return replace(_TINY, **fields)
