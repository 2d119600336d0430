"""Models of true shapes, of which only the sizes matter: their weights are random."""

from parallel.models.spec import ModelSpec, RopeSpec

LLAMA_8B = ModelSpec(
    architecture="LlamaForCausalLM",
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    vocab_size=128256,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    rope=RopeSpec(
        theta=500000.0,
        scaling="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    tie_word_embeddings=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    sliding_window=None,
    dtype="bfloat16",
    bos_token_id=128000,
    eos_token_ids=(128001, 128008, 128009),
)
"""Llama-3.1-8B."""
QWEN_0_6B = ModelSpec(
    architecture="Qwen3ForCausalLM",
    hidden_size=1024,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=3072,
    vocab_size=151936,
    max_position_embeddings=40960,
    rms_norm_eps=1e-6,
    rope=RopeSpec(theta=1000000.0),
    tie_word_embeddings=True,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=True,
    sliding_window=None,
    dtype="bfloat16",
    bos_token_id=151643,
    eos_token_ids=(151643, 151645),
)
"""Qwen3-0.6B."""
MODELS = {"8B": LLAMA_8B, "0.6B": QWEN_0_6B}
