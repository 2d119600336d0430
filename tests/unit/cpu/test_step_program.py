"""A whole step in one C call against the same operations called one by one, and against tier 0."""

import os
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import RankDied
from parallel.cpu.library import KernelLibrary
from parallel.cpu.ops import CpuOps
from parallel.cpu.program import CpuProgram
from parallel.cpu.thread_plan import ThreadPlan, fewest_worthwhile
from parallel.cpu.threads import ThreadPool
from parallel.formats.kinds import QuantFormat
from parallel.formats.quantise import quantise_int8
from parallel.formats.quantised import QuantisedMatrix
from parallel.groups.base import TPGroup
from parallel.groups.shared_memory import SharedMemoryGroup, new_segment
from parallel.groups.solo import SoloGroup
from parallel.kv_cache import KVCache
from parallel.layers.linear import Linear
from parallel.layers.shard import Storage
from parallel.models.decoder import CausalLM
from parallel.models.registry import build_model
from parallel.models.spec import ModelSpec
from parallel.ops.base import Ops
from parallel.ops.torch_ops import TorchOps
from parallel.plan import Chunk, RowStart
from parallel.rank.forward import Forward, OpByOp
from parallel.rank.rows import RowTable, StepInputs
from parallel.sampling.params import SamplingParams
from parallel.sharding import ShardPlan
from tests.support.kernel_libraries import LEVELS, kernel_library, thread_pool
from tests.support.shared_ranks import run_shared_ranks
from tests.support.tiny_specs import a_spec

CPU = torch.device("cpu")
BLOCK_SIZE = 16
NUM_BLOCKS = 16
VOCAB = 80
LLAMA = a_spec(
    hidden_size=64,
    num_layers=3,
    num_heads=6,
    num_kv_heads=3,
    head_dim=32,
    intermediate_size=96,
    vocab_size=VOCAB,
    tie_word_embeddings=True,
)
QWEN3_WITH_BIASES = a_spec(
    architecture="Qwen3ForCausalLM",
    hidden_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=64,
    vocab_size=VOCAB,
    qk_norm=True,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
)
SPECS = {"llama": LLAMA, "qwen3 with biases": QWEN3_WITH_BIASES}
FORMATS = (None, QuantFormat.INT8, QuantFormat.INT4)
SCHEDULE: list[list[tuple[int, int]]] = [
    [(0, 20)],
    [(0, 21), (1, 5)],
    [(1, 4), (0, 1), (2, 17)],
    [(2, 1), (0, 1), (1, 1)],
    [(2, 1), (0, 1), (1, 1)],
]
"""Row and tokens of each chunk: part of a prompt (nobody samples), its end beside another's part, mixtures, decodes."""
PROMPT_LENGTHS = {0: 41, 1: 9, 2: 17}


def random_int4(weight_RI: Tensor, generator: torch.Generator) -> QuantisedMatrix:
    num_outputs, num_inputs = weight_RI.shape
    groups = (num_outputs, num_inputs // 32)
    return QuantisedMatrix(
        QuantFormat.INT4,
        torch.randint(0, 16, (num_outputs, num_inputs), generator=generator, dtype=torch.uint8),
        (torch.rand(groups, generator=generator) * 0.05).half(),
        (torch.rand(groups, generator=generator) * -0.4).half(),
    )


def packed_model(
    spec: ModelSpec, ops: Ops, group: TPGroup, format: QuantFormat | None, dtype: torch.dtype = torch.bfloat16
) -> CausalLM:
    """Return a random model, other on each rank; the matrices in `format`, or numbers of bfloat16 in `dtype`."""
    generator = torch.Generator().manual_seed(group.rank)
    shard = ShardPlan.of(spec, group.world_size).ranks[group.rank]
    model = build_model(spec, shard, group, Storage(dtype, CPU, ops))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.3).bfloat16())
    in_format = {
        None: lambda weight: weight,
        QuantFormat.INT8: lambda weight: quantise_int8(weight) or weight,
        QuantFormat.INT4: lambda weight: random_int4(weight, generator),
    }[format]
    embedding = model.model.embed_tokens
    assert embedding.weight is not None
    table = in_format(embedding.weight.detach())
    if spec.tie_word_embeddings:
        model.lm_head.pack(table)
    embedding.pack(table, model.lm_head.matmul if spec.tie_word_embeddings else None)
    for layer in model.modules():
        if isinstance(layer, Linear) and layer.weight is not None:
            layer.pack(in_format(layer.weight.detach()))
    return model


def empty_cache(model: CausalLM, ops: Ops, group: TPGroup, dtype: torch.dtype) -> KVCache:
    num_kv_heads = len(ShardPlan.of(model.spec, group.world_size).ranks[group.rank].kv_heads)
    return KVCache(
        model.num_layers, NUM_BLOCKS, ops.kv_layout(BLOCK_SIZE, num_kv_heads, model.spec.head_dim, dtype), CPU
    )


def steps() -> Iterator[StepInputs]:
    """Yield the inputs of SCHEDULE; every row that samples is given a token that depends on its place only."""
    rows = RowTable(len(PROMPT_LENGTHS), 128, BLOCK_SIZE)
    blocks = iter(np.random.default_rng(0).permutation(NUM_BLOCKS).tolist())
    for row, length in PROMPT_LENGTHS.items():
        tokens = [(13 * place + 7 * row) % VOCAB for place in range(length)]
        own_blocks = [next(blocks) for _ in range(4)]
        rows.start(RowStart(row, tokens, length, 0, own_blocks, SamplingParams(max_tokens=9, seed=0)))
    for chunks in SCHEDULE:
        inputs = rows.step([Chunk(row, num_tokens) for row, num_tokens in chunks])
        yield inputs
        rows.append_tokens(inputs.sampled_rows_S, (inputs.num_tokens_S * 5 + inputs.sampled_rows_S) % VOCAB)


@torch.inference_mode()
def all_logits(forward: Forward) -> list[Tensor]:
    return [forward.logits(inputs).clone() for inputs in steps()]


class Parts(NamedTuple):
    """A model on one rank of the CPU tier."""

    library: KernelLibrary
    threads: ThreadPool
    ops: CpuOps
    model: CausalLM
    group: TPGroup
    kv_dtype: torch.dtype

    @classmethod
    def of(
        cls,
        spec: ModelSpec = LLAMA,
        format: QuantFormat | None = None,
        *,
        level: str | None = None,
        num_threads: int = 1,
        group: TPGroup | None = None,
        kv_dtype: torch.dtype = torch.bfloat16,
    ) -> "Parts":
        library = kernel_library(level)
        threads = thread_pool(num_threads, level) if group is None else ThreadPool(library, num_threads)
        group = group or SoloGroup()
        ops = CpuOps(library, threads)
        return cls(library, threads, ops, packed_model(spec, ops, group, format), group, kv_dtype)

    def cache(self) -> KVCache:
        return empty_cache(self.model, self.ops, self.group, self.kv_dtype)

    def one_by_one(self) -> Forward:
        return OpByOp(self.model, self.cache(), CPU)

    def one_call(self) -> Forward:
        group = self.group if isinstance(self.group, SharedMemoryGroup) else None
        return CpuProgram(self.model, self.cache(), self.library, self.threads, group)


def assert_same_bits(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert [len(logits_SV) for logits_SV in expected] == [0, 1, 3, 3, 3]
    for logits_SV, expected_SV in zip(ours, expected, strict=True):
        assert torch.equal(logits_SV, expected_SV)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_one_call_has_the_bits_of_single_operations(spec: ModelSpec, format: QuantFormat | None):
    parts = Parts.of(spec, format)
    assert_same_bits(all_logits(parts.one_call()), all_logits(parts.one_by_one()))


@pytest.mark.parametrize("level", LEVELS[1:])
def test_one_call_has_the_bits_of_single_operations_at_every_level(level: str):
    parts = Parts.of(level=level)
    assert_same_bits(all_logits(parts.one_call()), all_logits(parts.one_by_one()))


def test_one_call_has_the_bits_of_single_operations_over_an_int8_cache():
    parts = Parts.of(kv_dtype=torch.int8)
    assert_same_bits(all_logits(parts.one_call()), all_logits(parts.one_by_one()))


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_number_of_threads_changes_no_bit(format: QuantFormat | None):
    parts = Parts.of(format=format)
    assert_same_bits(all_logits(Parts.of(format=format, num_threads=3).one_call()), all_logits(parts.one_call()))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_logits_are_those_of_tier_0(spec: ModelSpec):
    parts = Parts.of(spec)
    ops = TorchOps(torch.float32)
    model = packed_model(spec, ops, SoloGroup(), None, torch.float32)
    reference = all_logits(OpByOp(model, empty_cache(model, ops, SoloGroup(), torch.float32), CPU))
    logits, expected = torch.cat(all_logits(parts.one_call())), torch.cat(reference)
    # Inputs of products, keys and values are rounded to bfloat16 in one of them: 8 bits.
    assert (logits - expected).norm() < 0.01 * expected.norm()


@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_in_a_batch():
    parts = Parts.of(format=QuantFormat.INT8)
    together = all_logits(parts.one_call())[1][0]
    alone = parts.one_call()
    rows = RowTable(1, 128, BLOCK_SIZE)
    prompt = [13 * place % VOCAB for place in range(PROMPT_LENGTHS[0])]
    rows.start(RowStart(0, prompt, len(prompt), 0, [3, 1, 2], SamplingParams(max_tokens=9, seed=0)))
    assert torch.equal(alone.logits(rows.step([Chunk(0, len(prompt))]))[0], together)


@torch.inference_mode()
def test_logits_are_valid_until_the_next_step_and_may_be_overwritten():
    parts = Parts.of()
    expected = all_logits(parts.one_call())
    program = parts.one_call()
    for inputs, expected_SV in zip(steps(), expected, strict=True):
        logits_SV = program.logits(inputs)
        assert torch.equal(logits_SV, expected_SV)
        logits_SV.fill_(float("nan"))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_ranks_that_share_memory_have_the_bits_of_single_operations(spec: ModelSpec):
    def rank(group: SharedMemoryGroup) -> tuple[list[Tensor], list[Tensor]]:
        parts = Parts.of(spec, group=group)
        try:
            return all_logits(parts.one_call()), all_logits(parts.one_by_one())
        finally:
            parts.threads.close()

    for ours, expected in run_shared_ranks(2, rank):
        assert_same_bits(ours, expected)


def test_step_without_a_peer_says_that_the_rank_is_gone():
    library = kernel_library()
    with (
        subprocess.Popen(["sleep", "60"]) as peer,
        new_segment(library, 2) as segment,
    ):
        group = SharedMemoryGroup(library, segment.descriptor, 0, [os.getpid(), peer.pid], timeout_s=5.0)
        peer.kill()
    program = Parts.of(group=group).one_call()
    with pytest.raises(RankDied, match="step failed: rank 1 is gone"):
        program.logits(next(steps()))
    group.close()


# ---- how many threads ----


def test_small_steps_get_fewer_threads():
    plan = ThreadPlan(small_steps=((1, 2), (4, 3)), num_threads=8)
    assert [plan.threads_for(num_tokens) for num_tokens in (1, 2, 4, 5, 500)] == [2, 3, 3, 8, 8]


@pytest.mark.parametrize(
    ("seconds", "num_threads"),
    [
        ({1: 8.0, 2: 4.0, 4: 3.9, 6: 3.9}, 2),
        ({1: 8.0, 2: 7.9, 4: 3.0, 6: 2.0}, 6),
        ({1: 8.0, 2: 9.0, 4: 9.0, 6: 9.0}, 1),
        ({1: 8.0, 2: float("inf"), 4: 9.0, 6: 9.0}, 6),
    ],
    ids=["two are enough", "all help", "more are slower", "nobody can tell"],
)
def test_fewest_threads_that_are_as_fast_are_taken(seconds: dict[int, float], num_threads: int):
    assert fewest_worthwhile(seconds.__getitem__, 6) == num_threads


def test_busy_moments_do_not_count():
    times = {1: iter([9.0, 5.0, 9.0, 9.0, 9.0]), 2: iter([8.0, 8.0, 8.0, 8.0, 8.0])}
    assert fewest_worthwhile(lambda count: next(times[count]), 2) == 1
