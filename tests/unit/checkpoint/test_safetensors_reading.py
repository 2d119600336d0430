"""Safetensors checkpoints: slices are parts of the whole, and every damage is refused by file and tensor."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from core.errors import CheckpointError, StartupError
from parallel.checkpoint.reader import open_checkpoint
from parallel.checkpoint.safetensors_files import INDEX_NAME
from tests.support.checkpoints import ARCHITECTURES, make_checkpoint

Entries = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("sharded"), max_shard_size="150KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return make_checkpoint("LlamaForCausalLM", tmp_path / "model")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_of_every_architecture_is_read_as_written(architecture: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(architecture, tmp_path, attention_bias=True))
    stored = load_file(tmp_path / "model.safetensors")
    assert checkpoint.tensors.keys() == stored.keys()
    for name, info in checkpoint.tensors.items():
        assert torch.equal(checkpoint.read(name), stored[name])
        assert info.shape == tuple(stored[name].shape)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_slices_equal_the_same_part_of_a_full_read(sharded: Path, data: st.DataObject) -> None:
    checkpoint = open_checkpoint(sharded)
    name = data.draw(st.sampled_from(sorted(checkpoint.tensors)))
    shape = checkpoint.tensors[name].shape
    bounds = [sorted(data.draw(st.sets(st.integers(0, size), min_size=2, max_size=2))) for size in shape]
    rows, columns = slice(*bounds[0]), slice(*bounds[1]) if len(bounds) > 1 else None
    part = checkpoint.read(name, rows, columns)
    full = checkpoint.read(name)
    assert part.is_contiguous()
    assert torch.equal(part, full[rows] if columns is None else full[rows, columns])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_stored_dtype_is_kept_and_becomes_the_models_when_the_configuration_names_none(
    dtype: str, tmp_path: Path
) -> None:
    folder = make_checkpoint("MistralForCausalLM", tmp_path, dtype=dtype)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec.dtype == dtype
    assert checkpoint.read("model.norm.weight").dtype == getattr(torch, dtype)


def test_tied_embeddings_need_no_lm_head(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint("Qwen2ForCausalLM", tmp_path, tie_word_embeddings=True))
    assert checkpoint.spec.tie_word_embeddings
    assert "lm_head.weight" not in checkpoint.tensors


def test_rotary_frequencies_and_the_head_of_a_tied_model_are_ignored(whole: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    rename(whole, "model.layers.0.self_attn.rotary_emb.inv_freq", add=True)
    tensors = open_checkpoint(whole).tensors
    assert "lm_head.weight" not in tensors
    assert not [name for name in tensors if "inv_freq" in name]


def test_end_tokens_of_generation_config_count(whole: Path) -> None:
    (whole / "generation_config.json").write_text('{"eos_token_id": [257, 259]}')
    assert open_checkpoint(whole).spec.eos_token_ids == (257, 259)


def rewrite(folder: Path, change: Callable[[Entries], None]) -> None:
    """Change the header of model.safetensors and leave its data as it is."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    entries: Entries = json.loads(raw[8 : 8 + length])
    change(entries)
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


def rename(folder: Path, new: str, old: str = "model.norm.weight", add: bool = False) -> None:
    def change(entries: Entries) -> None:
        entries[new] = entries[old] if add else entries.pop(old)

    rewrite(folder, change)


def set_entry(name: str, **values: object) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda entries: entries[name].update(values))


def truncate(num_bytes: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:num_bytes])

    return cut


def repeat_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = b'{"model.norm.weight":{},' + raw[9 : 8 + length].lstrip(b"{")
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def two_files_without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes(b"")


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate(0), ["model.safetensors", "0 bytes"]),
        (truncate(5), ["model.safetensors", "5 bytes"]),
        (truncate(1000), ["model.safetensors", "header", "truncated"]),
        (truncate(100_000), ["model.safetensors", "tensor ", "truncated"]),
        (overwrite("model.safetensors", struct.pack("<Q", 2**63) + b"{}"), ["model.safetensors", str(2**63)]),
        (overwrite("model.safetensors", struct.pack("<Q", 4) + b"{oh}"), ["model.safetensors", "JSON"]),
        (overwrite("model.safetensors", struct.pack("<Q", 4) + b"\xff\xfe{}"), ["model.safetensors", "JSON"]),
        (overwrite("model.safetensors", struct.pack("<Q", 2) + b"[]"), ["model.safetensors", "list"]),
        (repeat_tensor, ["model.safetensors", NORM, "twice"]),
        (set_entry(NORM, dtype="I64", shape=[32]), ["model.safetensors", NORM]),
        (set_entry(NORM, dtype="I32"), ["model.safetensors", NORM, "I32"]),
        (set_entry(NORM, dtype="F4"), ["model.safetensors", NORM, "F4"]),
        (set_entry(NORM, shape=[2, 32]), ["model.safetensors", NORM, "[2, 32]", "[64]"]),
        (set_entry(NORM, shape=[-64]), ["model.safetensors", NORM, "-64"]),
        (set_entry(NORM, shape="64"), ["model.safetensors", NORM]),
        (set_entry(NORM, data_offsets=[10, 4]), ["model.safetensors", NORM]),
        (set_entry(NORM, data_offsets=[2**60, 2**60 + 256]), ["model.safetensors", NORM, "truncated"]),
        (set_entry(NORM, data_offsets=[0]), ["model.safetensors", NORM]),
        (lambda folder: rename(folder, "model.norm.wait"), [NORM, "missing"]),
        (lambda folder: rename(folder, "model.extra.weight", add=True), ["model.safetensors", "model.extra.weight"]),
        (only_pickles, ["pytorch_model.bin", "pickle", "safetensors or GGUF"]),
        (lambda folder: (folder / "config.json").unlink(), ["config.json"]),
        (overwrite("config.json", b"{"), ["config.json", "JSON"]),
        (overwrite("config.json", b"\xff"), ["config.json", "UTF-8"]),
        (overwrite("generation_config.json", b"[]"), ["generation_config.json"]),
        (two_files_without_index, [INDEX_NAME]),
    ],
)  # fmt: skip
def test_damage_is_refused_by_file_and_tensor(whole: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    open_checkpoint(whole)
    damage(whole)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(whole)
    for word in words:
        assert word in caught.value.message, caught.value.message


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    change(index)
    (folder / INDEX_NAME).write_text(json.dumps(index))


def shard_of(folder: Path, name: str) -> str:
    return json.loads((folder / INDEX_NAME).read_text())["weight_map"][name]


def move_in_index(folder: Path, to: str) -> None:
    change_index(folder, lambda index: index["weight_map"].update({NORM: to}))


def test_index_that_disagrees_with_its_files_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("LlamaForCausalLM", tmp_path, max_shard_size="150KB")
    original = (folder / INDEX_NAME).read_text()
    elsewhere = next(path.name for path in sorted(folder.glob("*.safetensors")) if path.name != shard_of(folder, NORM))
    damages: list[tuple[Callable[[], object], str]] = [
        (lambda: move_in_index(folder, "absent.safetensors"), r"absent\.safetensors: missing"),
        (lambda: move_in_index(folder, "../model.safetensors"), r"model\.norm\.weight .*\.\./model"),
        (lambda: move_in_index(folder, "weights.bin"), r"weights\.bin"),
        (lambda: move_in_index(folder, elsewhere), rf"{elsewhere}: tensor model\.norm\.weight is missing"),
        (lambda: change_index(folder, lambda index: index.pop("weight_map")), "weight_map"),
        (lambda: change_index(folder, lambda index: index["weight_map"].update(ghost=elsewhere)), "tensor ghost"),
        (lambda: (folder / elsewhere).write_bytes(b""), elsewhere),
    ]
    for damage, words in damages:
        (folder / INDEX_NAME).write_text(original)
        damage()
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(folder)


def test_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("LlamaForCausalLM", tmp_path, max_shard_size="150KB")
    (folder / "copy.safetensors").write_bytes((folder / shard_of(folder, EMBEDDING)).read_bytes())
    change_index(folder, lambda index: index["weight_map"].update({EMBEDDING: "copy.safetensors"}))
    with pytest.raises(CheckpointError, match=r"tensor model\.embed_tokens\.weight is also in"):
        open_checkpoint(folder)


def test_file_that_shrinks_after_opening_is_a_checkpoint_error(whole: Path) -> None:
    checkpoint = open_checkpoint(whole)
    truncate(50_000)(whole)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor lm_head\.weight"):
        checkpoint.read("lm_head.weight")


def test_random_damage_to_a_header_never_escapes_as_another_error(whole: Path) -> None:
    path = whole / "model.safetensors"
    sound = path.read_bytes()
    (length,) = struct.unpack_from("<Q", sound)
    chance = random.Random(7)
    for _ in range(300):
        raw = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(8 + length)] = chance.randrange(256)
        path.write_bytes(raw)
        try:
            open_checkpoint(whole)
        except StartupError as error:
            assert "model" in error.message
