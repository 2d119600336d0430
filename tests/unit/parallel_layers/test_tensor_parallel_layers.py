"""Every parallel layer, all its ranks in one process, equals the dense layer it is a part of."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, silu

from parallel.groups.solo import SoloGroup
from parallel.layers.linear import ColumnParallelLinear, GateUpParallelLinear, QKVParallelLinear, RowParallelLinear
from parallel.layers.norm import RMSNorm
from parallel.layers.shard import ShardedLayer
from parallel.layers.vocab import VocabParallelEmbedding, VocabParallelHead
from parallel.sharding import ShardPlan
from tests.support.fake_tp_group import run_ranks
from tests.support.storages import torch_storage
from tests.support.tiny_specs import a_spec

CPU_FLOAT = torch_storage()
NINE_HEADS = a_spec(hidden_size=36, num_heads=9, num_kv_heads=3, head_dim=4, intermediate_size=56, vocab_size=50)
"""Divides by three only; on two ranks heads and columns are uneven."""
WORLD_SIZES = pytest.mark.parametrize("world_size", [1, 2, 3])


def dense(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fill(layer: ShardedLayer, tensors: dict[str, Tensor]) -> None:
    """Write dense tensors into the layer as its shards say: named after the source, or the layer's own."""
    for name, parameter in layer.named_parameters():
        parts = []
        for shard in layer.shards:
            whole = tensors[f"{shard.source}.{name}" if shard.source else name]
            part = whole if shard.rows is None else whole[list(shard.rows)]
            parts.append(part if shard.columns is None or part.dim() == 1 else part[:, list(shard.columns)])
        parameter.copy_(torch.cat(parts))


@WORLD_SIZES
@pytest.mark.parametrize("has_bias", [False, True])
def test_column_parallel_outputs_side_by_side_are_the_dense_output(world_size, has_bias):
    x_TD, tensors = dense(5, 36), {"weight": dense(56, 36, seed=1), "bias": dense(56, seed=2)}

    def rank(group):
        layer = ColumnParallelLinear(
            36, ShardPlan.of(NINE_HEADS, world_size).ranks[group.rank].ffn, has_bias, CPU_FLOAT
        )
        fill(layer, tensors)
        return layer(x_TD), group.num_collectives

    outputs, num_collectives = zip(*run_ranks(world_size, rank), strict=True)
    expected = linear(x_TD, tensors["weight"], tensors["bias"] if has_bias else None)
    torch.testing.assert_close(torch.cat(outputs, dim=-1), expected)
    assert sum(num_collectives) == 0


@WORLD_SIZES
@pytest.mark.parametrize("has_bias", [False, True])
def test_row_parallel_gives_every_rank_the_dense_output_with_the_bias_added_once(world_size, has_bias):
    x_TI, tensors = dense(5, 56), {"weight": dense(36, 56, seed=1), "bias": dense(36, seed=2)}

    def rank(group):
        columns = ShardPlan.of(NINE_HEADS, world_size).ranks[group.rank].ffn
        layer = RowParallelLinear(columns, 36, has_bias, group, CPU_FLOAT)
        fill(layer, tensors)
        return layer(x_TI[:, columns.start : columns.stop])

    expected = linear(x_TI, tensors["weight"], tensors["bias"] if has_bias else None)
    for output in run_ranks(world_size, rank):
        torch.testing.assert_close(output, expected)


@WORLD_SIZES
def test_qkv_parallel_heads_in_rank_order_are_the_dense_heads(world_size):
    x_TD = dense(5, 36)
    tensors = {f"{name}_proj.weight": dense(rows, 36, seed=rows) for name, rows in (("q", 36), ("k", 12), ("v", 12))}
    tensors |= {f"{name}_proj.bias": dense(rows, seed=rows) for name, rows in (("q", 36), ("k", 12), ("v", 12))}

    def rank(group):
        shard = ShardPlan.of(NINE_HEADS, world_size).ranks[group.rank]
        layer = QKVParallelLinear(36, shard.query_heads, shard.kv_heads, 4, True, CPU_FLOAT)
        fill(layer, tensors)
        return layer(x_TD)

    ranks = run_ranks(world_size, rank)
    shards = ShardPlan.of(NINE_HEADS, world_size).ranks
    sizes = [[4 * len(shard.query_heads), 4 * len(shard.kv_heads), 4 * len(shard.kv_heads)] for shard in shards]
    heads = [qkv_TR.split(size, dim=1) for qkv_TR, size in zip(ranks, sizes, strict=True)]
    for index, name in enumerate("qkv"):
        expected = linear(x_TD, tensors[f"{name}_proj.weight"], tensors[f"{name}_proj.bias"])
        torch.testing.assert_close(torch.cat([of_rank[index] for of_rank in heads], dim=1), expected)


@WORLD_SIZES
def test_gate_up_and_row_parallel_down_are_the_dense_feed_forward_network(world_size):
    x_TD, down = dense(5, 36), {"weight": dense(36, 56, seed=3)}
    tensors = {"gate_proj.weight": dense(56, 36, seed=1), "up_proj.weight": dense(56, 36, seed=2)}

    def rank(group):
        columns = ShardPlan.of(NINE_HEADS, world_size).ranks[group.rank].ffn
        gate_up = GateUpParallelLinear(36, columns, False, CPU_FLOAT)
        down_proj = RowParallelLinear(columns, 36, False, group, CPU_FLOAT)
        fill(gate_up, tensors)
        fill(down_proj, down)
        return down_proj(CPU_FLOAT.ops.silu_mul(gate_up(x_TD)))

    gate, up = (linear(x_TD, tensors[f"{name}_proj.weight"]) for name in ("gate", "up"))
    expected = linear(silu(gate) * up, down["weight"])
    for output in run_ranks(world_size, rank):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@WORLD_SIZES
def test_vocab_parallel_embedding_gives_every_rank_every_embedding(world_size):
    table_VD = dense(50, 36)
    token_ids_T = torch.tensor([0, 49, 17, 17, 25, 33, 16])

    def rank(group):
        layer = VocabParallelEmbedding(
            ShardPlan.of(NINE_HEADS, world_size).ranks[group.rank].vocab, 36, group, CPU_FLOAT
        )
        fill(layer, {"weight": table_VD})
        return layer(token_ids_T)

    for output in run_ranks(world_size, rank):
        assert torch.equal(output, embedding(token_ids_T, table_VD))


def test_vocab_parallel_embedding_leaves_its_token_ids_as_they_were():
    token_ids_T = torch.tensor([3, 49])

    def rank(group):
        layer = VocabParallelEmbedding(ShardPlan.of(NINE_HEADS, 2).ranks[group.rank].vocab, 36, group, CPU_FLOAT)
        fill(layer, {"weight": dense(50, 36)})
        layer(token_ids_T)

    run_ranks(2, rank)
    assert token_ids_T.tolist() == [3, 49]


@WORLD_SIZES
def test_vocab_parallel_logits_side_by_side_are_the_dense_logits_in_float32(world_size):
    weight_VD, hidden_SD = dense(50, 36).bfloat16(), dense(4, 36, seed=1).bfloat16()

    def rank(group):
        vocab = ShardPlan.of(NINE_HEADS, world_size).ranks[group.rank].vocab
        storage = torch_storage(torch.bfloat16)
        layer = VocabParallelHead(storage.matrix(len(vocab), 36), vocab, storage)
        fill(layer, {"weight": weight_VD})
        return layer(hidden_SD)

    logits_SV = torch.cat(run_ranks(world_size, rank), dim=-1)
    assert logits_SV.dtype == torch.float32
    torch.testing.assert_close(logits_SV, linear(hidden_SD.float(), weight_VD.float()), rtol=0.02, atol=0.02)


def test_logits_of_no_position_are_empty():
    layer = VocabParallelHead(CPU_FLOAT.matrix(50, 36), range(50), CPU_FLOAT)
    assert layer(torch.empty(0, 36)).shape == (0, 50)


def test_the_norm_is_taken_in_float32_whatever_the_precision():
    layer = RMSNorm(64, 1e-6, torch_storage(torch.float16))
    layer.weight.fill_(1)
    # The squares are over float16's largest number; a mean in float16 would be infinite.
    x = 300 * dense(3, 64)
    torch.testing.assert_close(
        layer(x.half(), torch.zeros(3, 64).half()).float(), rms_norm(x, (64,), eps=1e-6), rtol=0.01, atol=0.01
    )


def test_a_solo_group_changes_nothing():
    group, x = SoloGroup(), dense(3)
    assert group.all_reduce(x) is x
    assert torch.equal(group.all_gather(x), x[None])
    assert (group.rank, group.world_size) == (0, 1)
