"""Q8_0, Q4_0 and Q4_1 tensors come from a GGUF file in their own codes: no weight changes, any slice can be had."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.checkpoint.reader import Checkpoint, open_checkpoint
from parallel.formats.kinds import GROUP_SIZE, QuantFormat, stored_format
from parallel.formats.quantised import QuantisedMatrix
from parallel.sharding import ShardPlan
from tests.support.checkpoints import make_checkpoint, smollm2_gguf
from tests.support.gguf_files import write_gguf

Q8_0, Q4_0, Q4_1 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    return open_checkpoint(smollm2_gguf())


def matrix_of(checkpoint: Checkpoint, name: str, *part: slice) -> QuantisedMatrix:
    matrix = checkpoint.read_quantised(name, *part)
    assert matrix is not None
    return matrix


@pytest.mark.parametrize("kind", [Q8_0, Q4_0, Q4_1])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_codes_stand_for_the_weights_that_are_read(
    architecture: str, kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    source = open_checkpoint(make_checkpoint(architecture, tmp_path))
    tensors = {name: source.read(name).numpy() for name in source.tensors}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", source.spec, tensors, kind))
    for name, info in checkpoint.tensors.items():
        if len(info.shape) == 2:
            matrix = matrix_of(checkpoint, name)
            assert matrix.format is stored_format(kind.name)
            assert torch.equal(matrix.dequantised(), checkpoint.read(name)), name
        else:
            assert checkpoint.read_quantised(name) is None, name


def test_kinds_without_codes_of_ours_are_read_as_floats(tmp_path: Path) -> None:
    source = open_checkpoint(make_checkpoint("LlamaForCausalLM", tmp_path))
    tensors = {name: source.read(name).numpy() for name in source.tensors}
    for kind in (GGMLQuantizationType.F16, GGMLQuantizationType.BF16, GGMLQuantizationType.Q5_0):
        checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", source.spec, tensors, kind))
        assert checkpoint.read_quantised("model.layers.0.mlp.up_proj.weight") is None
    assert source.read_quantised("model.layers.0.mlp.up_proj.weight") is None


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_slices_of_the_real_model_are_the_same_part_of_the_whole(smollm2: Checkpoint, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"]))
    name = f"model.layers.7.{name}.weight"
    num_rows, num_columns = smollm2.tensors[name].shape
    top, bottom = sorted(data.draw(st.sets(st.integers(0, num_rows), min_size=2, max_size=2)))
    left, right = sorted(data.draw(st.sets(st.integers(0, num_columns // GROUP_SIZE), min_size=2, max_size=2)))
    rows, columns = slice(top, bottom), slice(left * GROUP_SIZE, right * GROUP_SIZE)
    part = matrix_of(smollm2, name, rows, columns)
    assert part.codes_RI.is_contiguous() and part.scales_RG.is_contiguous()
    assert torch.equal(part.dequantised(), smollm2.read(name, rows, columns))


def test_columns_that_cut_a_group_have_no_codes(smollm2: Checkpoint) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    assert smollm2.read_quantised(name, None, slice(0, 48)) is None
    assert smollm2.read_quantised(name, None, slice(16, 64)) is None


def test_the_real_model_is_mostly_four_bits_and_eight_in_its_embedding(smollm2: Checkpoint) -> None:
    assert matrix_of(smollm2, "model.layers.3.mlp.up_proj.weight").format is QuantFormat.INT4
    assert matrix_of(smollm2, "model.embed_tokens.weight", slice(0, 5)).format is QuantFormat.INT8


@pytest.mark.parametrize("world_size", [2, 3])
def test_slices_of_every_rank_keep_their_codes(smollm2: Checkpoint, world_size: int) -> None:
    head_dim = smollm2.spec.head_dim
    for shard in ShardPlan.of(smollm2.spec, world_size).ranks:
        heads = slice(shard.query_heads.start * head_dim, shard.query_heads.stop * head_dim)
        ffn = slice(shard.ffn.start, shard.ffn.stop)
        assert smollm2.read_quantised("model.layers.0.self_attn.o_proj.weight", None, heads) is not None
        assert smollm2.read_quantised("model.layers.0.mlp.down_proj.weight", None, ffn) is not None


def test_a_stack_of_slices_is_the_whole(smollm2: Checkpoint) -> None:
    name = "model.layers.0.self_attn.v_proj.weight"
    parts = [matrix_of(smollm2, name, slice(start, start + 64)) for start in range(0, 192, 64)]
    whole, stacked = matrix_of(smollm2, name), QuantisedMatrix.stack(parts)
    assert torch.equal(stacked.codes_RI, whole.codes_RI) and torch.equal(stacked.scales_RG, whole.scales_RG)
    assert torch.equal(stacked.dequantised(), whole.dequantised())


def test_codes_and_scales_are_memory_of_their_own(smollm2: Checkpoint) -> None:
    for name in ("model.layers.0.self_attn.v_proj.weight", "model.embed_tokens.weight"):
        matrix = matrix_of(smollm2, name, slice(0, 1), slice(0, 32))
        matrix.codes_RI.zero_()
        matrix.scales_RG.zero_()
        again = matrix_of(smollm2, name, slice(0, 1), slice(0, 32))
        assert again.codes_RI.any() and again.scales_RG.any()
