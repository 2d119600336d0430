"""GGUF files: what llama.cpp's converter stored comes back under Hugging Face's names, in its order, slice by slice."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.errors import CheckpointError, StartupError, UnsupportedModel
from parallel.checkpoint.reader import Checkpoint, open_checkpoint
from parallel.models.spec import ModelSpec, RopeSpec
from tests.support.checkpoints import make_checkpoint, smollm2_gguf
from tests.support.gguf_files import write_gguf
from tests.support.reference import load_reference

F32, F16, BF16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16
Q8_0 = GGMLQuantizationType.Q8_0


class Tiny:
    """A tiny model in both formats."""

    def __init__(self, architecture: str, folder: Path, **overrides: Any) -> None:
        checkpoint = open_checkpoint(make_checkpoint(architecture, folder, **overrides))
        self.folder = folder
        self.spec: ModelSpec = checkpoint.spec
        self.tensors: dict[str, NDArray[np.float32]] = {
            name: checkpoint.read(name).numpy().copy() for name in checkpoint.tensors
        }

    def write(self, kind: GGMLQuantizationType = F32, **options: Any) -> Path:
        return write_gguf(self.folder / "tiny.gguf", self.spec, self.tensors, kind, **options)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny("LlamaForCausalLM", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    return open_checkpoint(smollm2_gguf())


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("LlamaForCausalLM", {}),
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
        ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
        ("Qwen3ForCausalLM", {}),
    ],
)
@pytest.mark.parametrize("kind", [F32, F16, BF16, Q8_0])
def test_every_tensor_comes_back_in_hugging_face_order(
    architecture: str, overrides: dict[str, object], kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    tiny = Tiny(architecture, tmp_path, **overrides)
    checkpoint = open_checkpoint(tiny.write(kind))
    dtype = {F32: "float32", F16: "float16"}.get(kind, "bfloat16")
    assert (checkpoint.spec.dtype, checkpoint.spec.architecture) == (dtype, architecture)
    assert checkpoint.tensors.keys() == tiny.tensors.keys()
    for name, values in tiny.tensors.items():
        found = checkpoint.read(name)
        if values.ndim == 2 and kind is not F32:
            values = dequantize(quantize(values, kind), kind)
        assert torch.equal(found.float(), torch.from_numpy(values)), name
        assert tuple(found.shape) == checkpoint.tensors[name].shape


def test_sizes_equal_those_of_the_same_model_in_safetensors(tmp_path: Path) -> None:
    for architecture in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        tiny = Tiny(architecture, tmp_path / architecture)
        found, wanted = open_checkpoint(tiny.write()).spec, tiny.spec
        assert abs(found.rms_norm_eps - wanted.rms_norm_eps) < 1e-9
        same = {name: getattr(found, name) for name in ModelSpec.__dataclass_fields__}
        assert same | {"rms_norm_eps": wanted.rms_norm_eps, "bos_token_id": wanted.bos_token_id} == vars(wanted)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_slices_of_a_real_quantised_model_equal_the_same_part_of_a_full_read(
    smollm2: Checkpoint, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"]))
    name = f"model.layers.7.{name}.weight"
    shape = smollm2.tensors[name].shape
    rows, columns = (slice(*sorted(data.draw(st.sets(st.integers(0, size), min_size=2, max_size=2)))) for size in shape)
    part = smollm2.read(name, rows, columns)
    assert part.is_contiguous()
    assert torch.equal(part, smollm2.read(name)[rows, columns])


def test_real_model_equals_what_transformers_loads_from_the_same_file(smollm2: Checkpoint) -> None:
    expected = load_reference(smollm2_gguf()).state_dict()
    layer_tensors = [name for name in smollm2.tensors if ".0." in name or ".29." in name]
    for name in (*layer_tensors, "model.norm.weight", "model.embed_tokens.weight"):
        torch.testing.assert_close(smollm2.read(name), expected[name], rtol=0, atol=1e-6)
    assert smollm2.spec.eos_token_ids == (2,)
    assert smollm2.spec.tie_word_embeddings


def test_rope_factors_become_part_of_the_spec(llama: Tiny) -> None:
    factors = np.linspace(1, 8, llama.spec.head_dim // 2, dtype=np.float32)
    spec = open_checkpoint(llama.write(extra={"rope_freqs.weight": factors})).spec
    assert spec.rope == RopeSpec(10000.0, "factors", factors=tuple(factors.tolist()))
    plain = RopeSpec(10000.0).inverse_frequencies(16)
    np.testing.assert_allclose(spec.rope.inverse_frequencies(16), plain / factors, rtol=1e-6)


def test_rope_factors_that_llama_cpp_derives_equal_llama3_scaling() -> None:
    # convert_hf_to_gguf.py, `LlamaModel.generate_extra_tensors`, with the values of Llama 3.1.
    frequencies = 1.0 / 500000.0 ** (np.arange(0, 128, 2) / 128)
    turns = 8192 * frequencies / (2 * np.pi)
    smooth = (turns - 1) / 3
    factors = np.where(turns > 4, 1.0, np.where(turns < 1, 8.0, 1 / ((1 - smooth) / 8 + smooth)))
    carried = RopeSpec(500000.0, "factors", factors=tuple(factors))
    derived = RopeSpec(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    np.testing.assert_allclose(carried.inverse_frequencies(128), derived.inverse_frequencies(128), rtol=1e-6)


@pytest.mark.parametrize("factors", [np.ones(7, np.float32), np.zeros(8, np.float32), np.full(8, np.nan, np.float32)])
def test_rope_factors_of_wrong_number_or_value_are_refused(llama: Tiny, factors: NDArray[np.float32]) -> None:
    with pytest.raises(CheckpointError, match="rope"):
        open_checkpoint(llama.write(extra={"rope_freqs.weight": factors}))


def test_linear_rope_scaling_is_read(llama: Tiny) -> None:
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert open_checkpoint(llama.write(metadata=keys)).spec.rope == RopeSpec(10000.0, "linear", factor=4.0)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "mamba"}, "general.architecture='mamba'.*supported: llama"),
        ({"llama.expert_count": 8}, "8 experts"),
        ({"split.count": 3}, "3 parts"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count=8"),
    ],
)
def test_what_is_not_implemented_is_refused_as_such(llama: Tiny, metadata: dict[str, str | int], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"tiny\.gguf.*{words}"):
        open_checkpoint(llama.write(metadata=metadata))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.block_count": 0}, "block_count=0"),
        ({"llama.block_count": 3}, r"model\.layers\.2\..* is missing"),
        ({"llama.block_count": 1}, r"model\.layers\.1\..* is not part of"),
        ({"llama.feed_forward_length": 192}, r"mlp\.\w+_proj.*\[160, 64\].*\[192, 64\]"),
        ({"llama.attention.head_count_kv": 3}, "num_key_value_heads=3"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon=nan"),
        ({"llama.embedding_length": "wide"}, "embedding_length='wide'"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id=9999"),
        ({"general.alignment": 0}, "general.alignment=0"),
    ],
)
def test_bad_metadata_is_refused_by_file_and_key(llama: Tiny, metadata: dict[str, str | int], words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"tiny\.gguf.*{words}"):
        open_checkpoint(llama.write(metadata=metadata))


def test_missing_extra_and_mis_shaped_tensors_are_refused_by_name(llama: Tiny) -> None:
    row = np.zeros(64, np.float32)
    name = "model.layers.1.mlp.up_proj.weight"
    damages: list[tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]], str]] = [
        ({key: value for key, value in llama.tensors.items() if key != name}, {}, f"{name} is missing"),
        (llama.tensors | {name: llama.tensors[name][:-1]}, {}, rf"{name} has shape \[159, 64\]"),
        (llama.tensors, {"blk.0.ffn_gate_inp.weight": row}, r"tiny\.gguf: tensor blk\.0\.ffn_gate_inp\.weight is not"),
        ({key: value for key, value in llama.tensors.items() if "embed" not in key}, {}, r"token_embd\.weight"),
    ]
    for tensors, extra, words in damages:
        path = write_gguf(llama.folder / "tiny.gguf", llama.spec, tensors, extra=extra)
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"", "empty"),
        (lambda raw: b"GGML" + raw[4:], "does not start with GGUF"),
        (lambda raw: raw[:4] + b"\0\0\0\3" + raw[8:], "version"),
        (lambda raw: raw[:4] + b"\1\0\0\0" + raw[8:], "version 1"),
        (lambda raw: raw[:8] + b"\xff" * 8 + raw[16:], "tensors"),
        (lambda raw: raw[:16] + b"\xff" * 8 + raw[24:], "metadata"),
        (lambda raw: raw[:-5], r"tensor [\w.]+ ends at byte .* truncated"),
        (lambda raw: raw[: len(raw) // 2], r"tensor [\w.]+ ends at byte .* truncated"),
        (
            lambda raw: raw.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"),
            r"blk\.0\.ffn_up\.weight appears twice",
        ),
    ],
)
def test_damaged_file_is_refused(llama: Tiny, damage: Callable[[bytes], bytes], words: str) -> None:
    path = llama.write()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((CheckpointError, UnsupportedModel), match=words):
        open_checkpoint(path)


def test_header_cut_anywhere_is_a_checkpoint_error(llama: Tiny) -> None:
    path = llama.write()
    sound = path.read_bytes()
    for length in range(1, sound.index(b"blk.1.ffn_up.weight"), 13):
        path.write_bytes(sound[:length])
        with pytest.raises(CheckpointError, match=r"tiny\.gguf"):
            open_checkpoint(path)


def test_random_damage_to_a_header_never_escapes_as_another_error(llama: Tiny) -> None:
    path = llama.write()
    sound = path.read_bytes()
    chance = random.Random(11)
    for _ in range(400):
        raw = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(3000)] = chance.randrange(256)
        path.write_bytes(raw)
        try:
            open_checkpoint(path)
        except StartupError as error:
            assert "tiny.gguf" in error.message
