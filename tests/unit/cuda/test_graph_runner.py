"""Recorded decode steps, and steps beside them that nothing waits for, give the tokens of steps one by one.

The device is the host, where recorded work is done again by calling it: what is tested is which numbers each step reads
and writes, with padding, one step ahead, and with rows that come and go.
"""

import random

import numpy as np
import pytest
import torch

from parallel.cuda.device import Repeater
from parallel.cuda.ops import CudaOps
from parallel.cuda.row_kernels import CudaRowKernels
from parallel.cuda.runner import GraphRunner, Samplers, buckets_of
from parallel.cuda.sampler import DeviceSampler
from parallel.cuda.staging import DecodeTensors, upload
from parallel.groups.solo import SoloGroup
from parallel.kv_cache import KVCache
from parallel.layers.shard import Storage
from parallel.models.registry import build_model
from parallel.ops.torch_ops import TorchOps
from parallel.plan import BlocksAppended, Chunk, RowStart, RowToken, StepPlan
from parallel.rank.forward import OpByOp
from parallel.rank.rows import max_blocks_of_row
from parallel.rank.stepping import DirectRunner
from parallel.rank.tier import StepLimits
from parallel.rank.worker import RankWorker
from parallel.sampling.params import SamplingParams
from parallel.sampling.sampler import Sampler
from parallel.sharding import ShardPlan
from tests.support.tiny_specs import a_spec

CPU = torch.device("cpu")
BLOCK_SIZE, MAX_MODEL_LEN, MAX_ROWS, NUM_BLOCKS = 16, 48, 3, 24
PROMPTS = {0: [3, 14, 15, 9, 2, 6], 1: [5, 35, 8], 2: [7, 1, 44, 13]}
EACH_ROW_ITS_OWN = {
    0: {"temperature": 0.0},
    1: {"temperature": 0.9},
    2: {"temperature": 0.9, "top_p": 0.8, "top_k": 20},
}
SAMPLINGS = {
    "greedy, by temperature and with filters": EACH_ROW_ITS_OWN,
    "chosen on the device, in one row on the host": {**EACH_ROW_ITS_OWN, 0: {"temperature": 0.0, "logprobs": 2}},
    "with penalties": dict.fromkeys(range(MAX_ROWS), {"temperature": 0.0, "frequency_penalty": 2.0}),
}
LEAVE_ALL = StepPlan(9, [], freed=[0, 1, 2])


def a_model(ops):
    spec = a_spec(num_layers=1, num_heads=2, num_kv_heads=1)
    model = build_model(spec, ShardPlan.of(spec, 1).ranks[0], SoloGroup(), Storage(torch.float32, CPU, ops))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def a_worker(ops, make_runner) -> RankWorker:
    model = a_model(ops)
    kv = KVCache(1, NUM_BLOCKS, ops.kv_layout(BLOCK_SIZE, 1, model.spec.head_dim, torch.float32), CPU)
    runner = make_runner(model, kv)
    return RankWorker(model, runner, kv, max_rows=MAX_ROWS, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)


def record(model, kv) -> GraphRunner:
    samplers = Samplers(
        DeviceSampler(SoloGroup(), model.vocab, CPU), Sampler(SoloGroup(), model.vocab, CPU, CudaRowKernels())
    )
    limits = StepLimits(MAX_ROWS, max_blocks_of_row(MAX_MODEL_LEN, BLOCK_SIZE))
    return GraphRunner(model, kv, samplers, Repeater(), limits)


@pytest.fixture(scope="module")
def shared_worker() -> RankWorker:
    """Recorded once; the interpreter takes its time."""
    return a_worker(CudaOps(torch.float32, num_multiprocessors=1), record)


@pytest.fixture
def recorded(shared_worker) -> RankWorker:
    """With no rows, and nothing of other tests in its cache."""
    shared_worker.run(LEAVE_ALL)
    shared_worker._kv.clear(NUM_BLOCKS)
    return shared_worker


@pytest.fixture(scope="module")
def by_tier_0() -> RankWorker:
    """Steps one by one, in plain torch."""
    return a_worker(
        TorchOps(torch.float32),
        lambda model, kv: DirectRunner(OpByOp(model, kv, CPU), Sampler(SoloGroup(), model.vocab, CPU)),
    )


def start(row: int, prompt: list[int], samplings=EACH_ROW_ITS_OWN) -> RowStart:
    params = SamplingParams(max_tokens=20, seed=row + 1, **samplings[row])
    return RowStart(row, prompt, len(prompt), 0, [3 * row, 3 * row + 1], params)


def some_plans(samplings) -> list[StepPlan]:
    """Two rows, decodes, a third row's prompt among decodes, a row that leaves, and one in its place."""
    return [
        StepPlan(0, [Chunk(0, 6), Chunk(1, 3)], started=[start(row, PROMPTS[row], samplings) for row in (0, 1)]),
        StepPlan(1, None),
        StepPlan(2, [Chunk(0, 1), Chunk(1, 1), Chunk(2, 4)], started=[start(2, PROMPTS[2], samplings)]),
        StepPlan(3, [Chunk(0, 1), Chunk(1, 1), Chunk(2, 1)]),
        StepPlan(4, [Chunk(0, 1), Chunk(2, 1)], freed=[1]),
        StepPlan(5, [Chunk(0, 1), Chunk(1, 2), Chunk(2, 1)], started=[start(1, [9, 9, 4], samplings)]),
        StepPlan(6, [Chunk(0, 1), Chunk(1, 1), Chunk(2, 1)]),
        StepPlan(7, None, appended=[BlocksAppended(0, [20])]),
        StepPlan(8, None),
    ]


def run_ahead(worker: RankWorker, plans: list[StepPlan]) -> list[list[RowToken]]:
    """Return every step's tokens; a step is launched before the one before it is finished."""
    outputs, launched = [], [worker.launch(plans[0])]
    for plan in [*plans[1:], None]:
        if plan is not None:
            launched.append(worker.launch(plan))
        outputs.append(worker.finish(launched.pop(0)).tokens)
    return outputs


def row_tokens(outputs: list[list[RowToken]]) -> list[list[tuple[int, int]]]:
    return [[(token.row, token.token_id) for token in tokens] for tokens in outputs]


@pytest.mark.parametrize("name", SAMPLINGS)
def test_recorded_steps_launched_one_ahead_give_the_tokens_of_tier_0_one_by_one(name, recorded, by_tier_0):
    plans = some_plans(SAMPLINGS[name])
    if SAMPLINGS[name] is not EACH_ROW_ITS_OWN:
        # Up to the row that leaves: what comes after is the same whoever samples.
        plans = plans[:5]
    expected = [by_tier_0.run(plan).tokens for plan in plans]
    assert row_tokens(run_ahead(recorded, plans)) == row_tokens(expected)


def test_padding_is_written_nowhere(recorded):
    run_ahead(recorded, some_plans(EACH_ROW_ITS_OWN)[:2])
    written = recorded._kv.layers[0].key.flatten(2).any(-1).nonzero()[:, 0].unique().tolist()
    assert written == [0, 3], "blocks of the two rows, and no other"


def test_a_row_that_fails_says_so_and_leaves_the_others_alone(recorded):
    plans = some_plans(EACH_ROW_ITS_OWN)
    expected = run_ahead(recorded, plans[:2])[1]
    recorded.run(LEAVE_ALL)
    recorded.run(plans[0])
    recorded._kv.layers[0].value[3, :3] = torch.nan
    tokens = recorded.run(plans[1]).tokens
    assert tokens[0] == expected[0]
    assert tokens[1].error is not None


def test_what_is_uploaded_keeps_types_and_shapes_and_begins_where_kernels_want_it():
    arrays = [np.arange(3), np.empty(0, np.int64), np.ones((2, 3), np.float32), np.array([7], np.int32), np.zeros(2)]
    tensors = upload(arrays, Repeater())
    assert [tensor.tolist() for tensor in tensors] == [array.tolist() for array in arrays]
    assert [tensor.numpy().dtype for tensor in tensors] == [array.dtype for array in arrays]
    assert not any((tensor.data_ptr() - tensors[0].data_ptr()) % 16 for tensor in tensors)


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_what_graphs_read_begins_where_kernels_want_it_for_any_number_of_rows(num_rows):
    numbers = DecodeTensors(MAX_ROWS, 4, Repeater()).numbers(num_rows)
    assert not any((kind.data_ptr() - numbers[0].data_ptr()) % 16 for kind in numbers)
    assert {len(kind) for kind in numbers} == {num_rows}


@pytest.mark.parametrize(("max_rows", "buckets"), [(1, [1]), (3, [1, 2, 3]), (20, [1, 2, 4, 8, 16, 20])])
def test_buckets_end_with_the_largest_batch(max_rows, buckets):
    assert buckets_of(max_rows) == buckets


def test_buckets_pad_no_batch_by_more_than_a_third_or_seven_rows():
    buckets = buckets_of(512)
    dice = random.Random(0)
    for num_rows in (dice.randint(1, 512) for _ in range(200)):
        padded = next(size for size in buckets if size >= num_rows)
        assert padded - num_rows <= max(7, np.ceil(num_rows / 3))
