"""config.json, as transformers 4 and 5 write it, becomes the right ModelSpec or a refusal that names file and field."""

import json
from typing import Any

import numpy as np
import pytest

from core.errors import CheckpointError, UnsupportedModel
from parallel.checkpoint.fields import parse_json_object
from parallel.models.spec import FAMILIES, ModelSpec, RopeSpec
from tests.support.checkpoints import ARCHITECTURES, LLAMA3_ROPE, TINY

# As published beside the weights, cut to what matters (transformers 4).
LLAMA_31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_2_7B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
QWEN_25_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN_3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL_7B_V01: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}


def read(config: dict[str, Any], **changes: Any) -> ModelSpec:
    return ModelSpec.from_hf_config(config | changes, "model/config.json")


def test_llama_31_has_its_rope_scaling_and_every_end_token() -> None:
    spec = read(LLAMA_31_8B)
    assert spec.rope == RopeSpec(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    assert (spec.num_kv_heads, spec.head_dim, spec.group_size, spec.dtype) == (8, 128, 4, "bfloat16")
    assert spec.eos_token_ids == (128001, 128008, 128009)
    assert spec.max_context == 131072


def test_llama_2_without_kv_heads_theta_or_scaling_gets_the_defaults_of_its_time() -> None:
    spec = read(LLAMA_2_7B)
    assert (spec.num_kv_heads, spec.rope, spec.tie_word_embeddings) == (32, RopeSpec(10000.0), False)


def test_qwen_2_has_biases_on_qkv_only_and_no_window_unless_switched_on() -> None:
    spec = read(QWEN_25_7B)
    assert (spec.qkv_bias, spec.o_bias, spec.mlp_bias, spec.qk_norm) == (True, False, False, False)
    assert spec.sliding_window is None
    # 28 full layers of 28: the switch is on, but no layer slides.
    assert read(QWEN_25_7B, use_sliding_window=True).sliding_window is None
    assert read(QWEN_25_7B, use_sliding_window=True, max_window_layers=21).sliding_window == 131072


def test_qwen_3_has_head_norms_and_its_own_head_dim() -> None:
    spec = read(QWEN_3_06B)
    assert (spec.qk_norm, spec.head_dim, spec.hidden_size // spec.num_heads) == (True, 128, 64)
    assert (spec.tie_word_embeddings, spec.qkv_bias) == (True, False)


def test_active_sliding_window_limits_the_context() -> None:
    assert read(MISTRAL_7B_V01).max_context == 4096
    assert read(MISTRAL_7B_V01, sliding_window=None).max_context == 32768


def test_llama_attention_bias_covers_qkv_and_output() -> None:
    spec = read(LLAMA_2_7B, attention_bias=True, mlp_bias=True)
    assert (spec.qkv_bias, spec.o_bias, spec.mlp_bias) == (True, True, True)


def test_end_tokens_of_both_files_are_merged_and_sorted() -> None:
    spec = ModelSpec.from_hf_config(LLAMA_2_7B, "config.json", {"eos_token_id": [32, 2]})
    assert spec.eos_token_ids == (2, 32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_configuration_of_transformers_5_is_understood(architecture: str) -> None:
    import transformers

    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    config = config_class(**TINY, rope_parameters=LLAMA3_ROPE, architectures=[architecture], dtype="bfloat16")
    spec = ModelSpec.from_hf_config(json.loads(config.to_json_string()), "config.json")
    assert spec.rope == RopeSpec(500000.0, "llama3", 8.0, 1.0, 4.0, 64)
    assert spec.head_dim == (config.head_dim if "head_dim" in config.to_dict() else 16)
    assert (spec.dtype, spec.eos_token_ids, spec.num_layers) == ("bfloat16", (257,), 2)
    assert set(FAMILIES) == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("scaling", "rope"),
    [
        ({"rope_type": "default", "rope_theta": 1e5}, RopeSpec(1e5)),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, RopeSpec(1e4, "linear", factor=4.0)),
        (LLAMA3_ROPE, RopeSpec(500000.0, "llama3", 8.0, 1.0, 4.0, 64)),
    ],
)
def test_rotary_frequencies_are_those_of_transformers(scaling: dict[str, Any], rope: RopeSpec) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=1024, num_attention_heads=8, rope_parameters=scaling)
    expected = LlamaRotaryEmbedding(config).inv_freq.numpy()
    found = rope.inverse_frequencies(128)
    assert found.dtype == np.float32
    # A few units in the last place: torch and numpy raise to a power differently.
    np.testing.assert_allclose(found, expected, rtol=5e-7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", -4096),
        ("hidden_size", "4096"),
        ("hidden_size", 4096.0),
        ("hidden_size", True),
        ("hidden_size", 10**12),
        ("hidden_size", 4100),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**6),
        ("num_attention_heads", [32]),
        ("num_key_value_heads", 5),
        ("num_key_value_heads", 0),
        ("head_dim", 127),
        ("intermediate_size", None),
        ("vocab_size", -1),
        ("max_position_embeddings", 0),
        ("rms_norm_eps", -1e-5),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", float("inf")),
        ("rope_theta", 0),
        ("tie_word_embeddings", "yes"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", 32000),
        ("eos_token_id", [-1]),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", []),
        ("rope_scaling", [1]),
        ("torch_dtype", 16),
        ("sliding_window", "wide"),
    ],
)
def test_bad_field_is_refused_by_file_and_name(field: str, value: object) -> None:
    config = MISTRAL_7B_V01 if field == "sliding_window" else LLAMA_2_7B
    with pytest.raises(CheckpointError, match=rf"model/config\.json.*{field.removeprefix('torch_')}"):
        read(config, **{field: value})


def test_llama3_scaling_without_its_factors_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="rope_scaling: low_freq_factor is missing"):
        read(LLAMA_31_8B, rope_scaling={"rope_type": "llama3", "factor": 8.0})
    with pytest.raises(CheckpointError, match="low_freq_factor=4.0 is not under high_freq_factor=4.0"):
        read(LLAMA_31_8B, rope_scaling=LLAMA_31_8B["rope_scaling"] | {"low_freq_factor": 4.0})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM.*supported: LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config.*awq.*GGUF"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "rope_type='dynamic'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
)
def test_what_is_not_implemented_is_refused_as_such(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        read(LLAMA_2_7B, **changes)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1e999}', "[1]", "{", "", '{"a": ' + "[" * 100_000, "\x00"])
def test_json_that_is_not_an_object_of_finite_numbers_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="config.json"):
        parse_json_object(text, "config.json")


@pytest.mark.parametrize(
    "extra",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}},
        {"trust_remote_code": True},
        {"text_config": {"vision": [{"trust_remote_code": True}]}},
        {"sub": {"auto_map": {"AutoConfig": "other/repository--configuration_evil.Evil"}}},
    ],
)
def test_checkpoint_that_brings_code_is_refused_however_deep_it_says_so(extra: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json: auto_map or trust_remote_code"):
        ModelSpec.from_hf_config(LLAMA_31_8B | extra, "config.json")
    ModelSpec.from_hf_config(LLAMA_31_8B | {"auto_map": {}, "trust_remote_code": False}, "config.json")
