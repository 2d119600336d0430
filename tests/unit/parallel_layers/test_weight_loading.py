"""The loader reads each rank's slices, all of them and nothing else; the ranks together are the whole model."""

import pytest
import torch

from core.errors import CheckpointError, UnsupportedModel
from parallel.groups.solo import SoloGroup
from parallel.models.loader import load_weights
from parallel.models.registry import build_model
from parallel.ops.torch_matmul import has_packed_matmul
from parallel.sharding import ShardPlan
from tests.support.fake_tp_group import run_ranks
from tests.support.memory_checkpoint import FILE, MemoryCheckpoint
from tests.support.model_runner import ModelRunner, all_logits
from tests.support.storages import torch_storage
from tests.support.tiny_specs import a_spec

CPU = torch.device("cpu")
UNEVEN = a_spec(num_heads=9, num_kv_heads=3, intermediate_size=56, vocab_size=320, tie_word_embeddings=True)
REPLICATED = a_spec(
    num_heads=4, num_kv_heads=2, vocab_size=320, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True
)


def load(checkpoint, dtype=torch.float32, on_progress=lambda done, total, detail: None):
    model = build_model(checkpoint.spec, ShardPlan.of(checkpoint.spec, 1).ranks[0], SoloGroup(), torch_storage(dtype))
    load_weights(model, checkpoint, "auto", on_progress)
    return model


@pytest.mark.parametrize(("spec", "world_size"), [(UNEVEN, 2), (UNEVEN, 3), (REPLICATED, 2), (REPLICATED, 4)])
def test_logits_of_several_ranks_side_by_side_are_those_of_one(spec, world_size):
    checkpoint = MemoryCheckpoint(spec)
    alone = all_logits(ModelRunner.of(checkpoint, SoloGroup()).step)
    ranks = run_ranks(world_size, lambda group: all_logits(ModelRunner.of(checkpoint, group).step))
    for row, expected in alone.items():
        torch.testing.assert_close(torch.cat([rank[row] for rank in ranks], dim=-1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("spec", "world_size"), [(UNEVEN, 2), (REPLICATED, 4)])
def test_a_rank_reads_as_many_values_as_it_holds_and_the_plan_says_how_many(spec, world_size):
    for rank, shard in enumerate(ShardPlan.of(spec, world_size).ranks):
        checkpoint = MemoryCheckpoint(spec)

        def held_bytes(group, checkpoint=checkpoint, rank=rank):
            return group.rank == rank and load_on(checkpoint, group)

        assert run_ranks(world_size, held_bytes)[rank] == 4 * shard.num_parameters(spec)
        assert sum(read.num_values for read in checkpoint.reads) == shard.num_parameters(spec)


def load_on(checkpoint, group) -> int:
    shard = ShardPlan.of(checkpoint.spec, group.world_size).ranks[group.rank]
    model = build_model(checkpoint.spec, shard, group, torch_storage())
    load_weights(model, checkpoint, "auto", lambda done, total, detail: None)
    return model.weight_bytes


def test_every_tensor_is_read_once():
    checkpoint = MemoryCheckpoint(UNEVEN)
    load(checkpoint)
    assert sorted(read.name for read in checkpoint.reads) == sorted(checkpoint.tensors)


def test_progress_counts_bytes_up_to_the_total_and_names_the_file():
    reports = []
    model = load(MemoryCheckpoint(REPLICATED), torch.bfloat16, lambda *report: reports.append(report))
    total = 2 * model_parameters(REPLICATED)
    assert reports[0] == (0, total, FILE.name)
    assert reports[-1] == (total, total, "")
    assert [done for done, _, _ in reports] == sorted(done for done, _, _ in reports)
    assert model.weight_bytes == total


def model_parameters(spec) -> int:
    return ShardPlan.of(spec, 1).ranks[0].num_parameters(spec)


def test_weight_bytes_count_a_tied_head_twice_where_it_was_packed():
    tied = 2 * UNEVEN.vocab_size * UNEVEN.hidden_size if has_packed_matmul() else 0
    assert load(MemoryCheckpoint(UNEVEN), torch.bfloat16).weight_bytes == 2 * model_parameters(UNEVEN) + tied


def test_bfloat16_logits_are_near_those_of_float32():
    checkpoint = MemoryCheckpoint(a_spec(vocab_size=320))
    exact = all_logits(ModelRunner.of(checkpoint, SoloGroup()).step)
    for row, logits in all_logits(ModelRunner.of(checkpoint, SoloGroup(), torch.bfloat16).step).items():
        similarity = torch.cosine_similarity(logits, exact[row], dim=-1)
        assert similarity.min() > 0.99


def test_a_slice_of_another_shape_is_refused_naming_file_and_tensor():
    checkpoint = MemoryCheckpoint(a_spec())
    checkpoint.values["model.layers.1.mlp.down_proj.weight"] = torch.zeros(1, 48)
    with pytest.raises(CheckpointError, match=r"memory.safetensors: model.layers.1.mlp.down_proj.weight .* \(1, 48\)"):
        load(checkpoint)


def test_an_architecture_nobody_wrote_is_refused():
    with pytest.raises(UnsupportedModel, match="'MambaForCausalLM' is not implemented; use one of LlamaForCausalLM"):
        load(MemoryCheckpoint(a_spec(architecture="MambaForCausalLM")))


def test_no_parameter_wants_a_gradient():
    assert not any(parameter.requires_grad for parameter in load(MemoryCheckpoint(a_spec())).parameters())
