"""Memory is arithmetic on the configuration; what does not fit is refused with the numbers."""

from pathlib import Path

import msgspec
import pytest

from core.errors import DoesNotFit, InvalidConfig
from engine.config import EngineConfig
from engine.memory import GPU_RESERVED_BYTES, MemoryPlan, choose_dtype, show_bytes
from parallel.checkpoint.tensors import TensorInfo, expected_shapes
from parallel.rank.messages import Joined
from parallel.sharding import ShardPlan
from tests.support.engines import tiny_spec

GIB = 2**30
MIB = 2**20
BLOCK_BYTES = 2 * 2 * 16 * 2 * 16 * 4
"""Keys and values, 2 layers, 16 tokens, 2 heads of 16, float32."""


def config(**sections):
    return EngineConfig.parse({"model": {"source": "x"}} | sections, "test")


def joined(rank=0, device="cpu", free=8 * GIB, total=16 * GIB, node="node"):
    return Joined(rank, 0, 1, "127.0.0.1", node, device, total, free)


def plan(spec=None, devices=None, **sections):
    spec, devices = spec or tiny_spec(), devices or [joined()]
    tensors = {name: TensorInfo(shape, "F32", Path("x")) for name, shape in expected_shapes(spec).items()}
    return MemoryPlan.of(config(**sections), spec, tensors, ShardPlan.of(spec, len(devices)), devices)


def test_an_explicit_size_gives_as_many_blocks_as_it_holds():
    assert plan(cache={"memory": 10 * BLOCK_BYTES + 1}, model={"source": "x", "max_model_len": 160}).num_blocks == 10


def test_auto_on_a_cpu_takes_no_more_than_all_running_contexts_need():
    memory = plan(scheduler={"max_running": 4})
    assert memory.num_blocks == 4 * 256 // 16
    assert "enough for max_running=4 contexts of 256 tokens" in memory.explain()


def test_auto_on_a_cpu_takes_at_most_a_quarter_of_what_is_free():
    memory = plan(tiny_spec(max_position_embeddings=8192), [joined(free=256 * MIB)])
    assert memory.num_blocks == 64 * MIB // BLOCK_BYTES
    assert "a quarter of the memory" in memory.explain()


def test_ranks_of_one_node_share_its_memory():
    spec = tiny_spec(max_position_embeddings=8192)
    together = plan(spec, [joined(0, free=256 * MIB), joined(1, free=250 * MIB)])
    apart = plan(spec, [joined(0, free=256 * MIB, node="a"), joined(1, free=250 * MIB, node="b")])
    assert apart.num_blocks == 2 * together.num_blocks
    assert together.ranks[0].budget_bytes == together.ranks[1].budget_bytes == 125 * MIB


def test_auto_on_a_gpu_takes_what_weights_and_activations_leave():
    memory = plan(devices=[joined(device="cuda", total=16 * GIB, free=15 * GIB)])
    rank = memory.ranks[0]
    assert rank.budget_bytes == int(0.9 * 16 * GIB) - GPU_RESERVED_BYTES
    used = rank.weight_bytes + rank.activation_bytes + memory.num_blocks * rank.block_bytes
    assert rank.budget_bytes - rank.block_bytes < used <= rank.budget_bytes


def test_the_rank_with_the_least_room_decides_for_all():
    devices = [joined(0, "cuda", total=8 * GIB, free=8 * GIB), joined(1, "cuda", total=8 * GIB, free=2 * GIB)]
    memory = plan(devices=devices)
    assert memory.num_blocks == memory.ranks[1].room_bytes // memory.ranks[1].block_bytes
    assert "on rank 1" in memory.reason


def test_a_rank_with_more_kv_heads_pays_more_for_a_block():
    memory = plan(tiny_spec(num_heads=6, num_kv_heads=3), [joined(0), joined(1)])
    assert memory.ranks[0].block_bytes == 2 * memory.ranks[1].block_bytes


def test_weights_are_the_shards_parameters_in_the_chosen_dtype():
    spec = tiny_spec(dtype="bfloat16", tie_word_embeddings=False)
    memory = plan(spec)
    assert memory.dtype == "bfloat16"
    assert memory.ranks[0].weight_bytes == 2 * ShardPlan.of(spec, 1).ranks[0].num_parameters(spec)


@pytest.mark.parametrize(
    ("stored", "device", "chosen"),
    [
        ("float32", "cpu", "float32"),
        ("float16", "cpu", "bfloat16"),
        ("bfloat16", "cpu", "bfloat16"),
        ("float32", "cuda", "bfloat16"),
        ("float16", "cuda", "bfloat16"),
    ],
)
def test_auto_dtype(stored, device, chosen):
    assert choose_dtype(config(), tiny_spec(dtype=stored), [joined(device=device)]) == chosen


def test_a_configured_dtype_is_kept():
    assert choose_dtype(config(model={"source": "x", "dtype": "float16"}), tiny_spec(), [joined()]) == "float16"


def test_weights_that_do_not_fit_are_refused_with_the_numbers():
    with pytest.raises(
        DoesNotFit, match=r"rank 0 \(cpu\) may use 1.0 MiB, but its weights need .* MiB and activations"
    ):
        plan(devices=[joined(free=MIB)])


def test_an_explicit_kv_size_that_does_not_fit_is_refused_with_the_numbers():
    with pytest.raises(DoesNotFit, match=r"cache.memory=9.00 GiB does not fit on rank 0 \(cpu\): of 8.00 GiB, weights"):
        plan(cache={"memory": "9GiB"})


def test_a_promised_context_that_the_blocks_cannot_hold_is_refused_with_the_numbers():
    with pytest.raises(DoesNotFit, match=r"hold 64 tokens .* one context of 128 tokens needs 64.0 KiB|0.1 MiB"):
        plan(cache={"memory": 4 * BLOCK_BYTES}, model={"source": "x", "max_model_len": 128})


def test_the_default_context_is_reduced_to_what_the_blocks_hold_and_says_so():
    memory = plan(cache={"memory": 4 * BLOCK_BYTES})
    assert memory.max_model_len == 64
    assert "max_model_len is 64 instead of the model's 256" in memory.explain()


def test_a_size_without_room_for_one_block_is_refused():
    with pytest.raises(DoesNotFit, match="hold 0 tokens"):
        plan(cache={"memory": BLOCK_BYTES - 1})


def test_a_context_over_the_models_limit_is_a_configuration_error():
    with pytest.raises(InvalidConfig, match=r"max_model_len=300 is over the model's 256"):
        plan(model={"source": "x", "max_model_len": 300})


def test_an_active_sliding_window_limits_the_context():
    assert plan(tiny_spec(sliding_window=100)).max_model_len == 100


def test_activations_grow_with_the_step_the_batch_and_the_context():
    def activations(spec=None, **scheduler):
        return plan(spec, scheduler=scheduler).ranks[0].activation_bytes

    base = activations()
    assert activations(max_step_tokens=4096) > base
    assert activations(max_running=128) > base
    assert activations(tiny_spec(max_position_embeddings=1024)) > base


@pytest.mark.parametrize(("count", "shown"), [(3 * GIB // 2, "1.50 GiB"), (64 * MIB, "64.0 MiB")])
def test_sizes_are_shown_for_people(count, shown):
    assert show_bytes(count) == shown


def test_fp8_is_refused_where_a_rank_cannot_multiply_it():
    fp8 = {"source": "x", "quantization": "fp8"}
    with pytest.raises(InvalidConfig, match=r"model\.quantization=fp8 cannot be had on rank 1: it runs on cpu; use"):
        plan(devices=[with_fp8(joined(0, "cuda")), joined(1)], model=fp8)
    plan(devices=[with_fp8(joined(0, "cuda"))], model=fp8)


def with_fp8(device):
    return msgspec.structs.replace(device, fp8_obstacle="")


def test_int8_weights_take_little_over_half_of_bfloat16_where_kernels_multiply_by_them():
    assert 1.7 < int8_saves(tier="cpu", head_dim=32) < 1.9
    assert int8_saves(tier="torch", head_dim=32) == 1
    # No kernel has heads of 16: the rank will fall back to torch.
    assert int8_saves(tier="cpu", head_dim=16) == 1


def int8_saves(tier, head_dim):
    spec = tiny_spec(head_dim=head_dim, tie_word_embeddings=False)
    device = msgspec.structs.replace(joined(), tier=tier)
    none, int8 = (
        plan(spec, [device], model={"source": "x", "quantization": quantization, "dtype": "bfloat16"}).ranks[0]
        for quantization in ("none", "int8")
    )
    return none.weight_bytes / int8.weight_bytes


def test_int8_keys_and_values_have_a_scale_each():
    memory = plan(cache={"dtype": "int8"})
    assert memory.kv_dtype == "int8" and memory.dtype == "float32"
    assert memory.ranks[0].block_bytes == BLOCK_BYTES // 4 + 2 * 2 * 16 * 2 * 4
    assert "tokens in int8" in memory.explain()


def test_a_model_to_be_quantised_is_bfloat16_for_the_rest():
    assert plan(model={"source": "x", "quantization": "int8"}).dtype == "bfloat16"
    assert plan(model={"source": "x", "quantization": "none"}).dtype == "float32"
