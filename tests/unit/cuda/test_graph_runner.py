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
from parallel.groups.solo import SoloGroup
from parallel.kv_cache import KVCache
from parallel.layers.shard import Storage
from parallel.models.registry import build_model
from parallel.plan import BlocksAppended, Chunk, RowStart, StepPlan
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
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.9},
    "filters": {"temperature": 0.9, "top_p": 0.8, "top_k": 20},
    "penalties": {"temperature": 0.0, "frequency_penalty": 2.0},
}


def a_model(ops):
    spec = a_spec(num_layers=1)
    model = build_model(spec, ShardPlan.of(spec, 1).ranks[0], SoloGroup(), Storage(torch.float32, CPU, ops))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def a_worker(is_recorded: bool) -> RankWorker:
    ops = CudaOps(torch.float32, num_multiprocessors=4)
    model = a_model(ops)
    spec = model.spec
    kv = KVCache(1, NUM_BLOCKS, ops.kv_layout(BLOCK_SIZE, spec.num_kv_heads, spec.head_dim, torch.float32), CPU)
    host = Sampler(SoloGroup(), model.vocab, CPU, CudaRowKernels())
    if is_recorded:
        samplers = Samplers(DeviceSampler(SoloGroup(), model.vocab, CPU), host)
        limits = StepLimits(MAX_ROWS, max_blocks_of_row(MAX_MODEL_LEN, BLOCK_SIZE))
        runner = GraphRunner(model, kv, samplers, Repeater(), limits)
    else:
        runner = DirectRunner(OpByOp(model, kv, CPU), host)
    return RankWorker(model, runner, kv, max_rows=MAX_ROWS, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)


def start(row: int, prompt: list[int], **sampling) -> RowStart:
    params = SamplingParams(max_tokens=20, seed=row + 1, **sampling)
    return RowStart(row, prompt, len(prompt), 0, [3 * row, 3 * row + 1], params)


def some_plans(**sampling) -> list[StepPlan]:
    """Two rows, decodes, a third row's prompt among decodes, a row that leaves, and one in its place."""
    return [
        StepPlan(0, [Chunk(0, 6), Chunk(1, 3)], started=[start(row, PROMPTS[row], **sampling) for row in (0, 1)]),
        StepPlan(1, None),
        StepPlan(2, [Chunk(0, 1), Chunk(1, 1), Chunk(2, 4)], started=[start(2, PROMPTS[2], **sampling)]),
        StepPlan(3, [Chunk(0, 1), Chunk(1, 1), Chunk(2, 1)]),
        StepPlan(4, [Chunk(0, 1), Chunk(2, 1)], freed=[1]),
        StepPlan(5, [Chunk(0, 1), Chunk(1, 2), Chunk(2, 1)], started=[start(1, [9, 9, 4], **sampling)]),
        StepPlan(6, [Chunk(0, 1), Chunk(1, 1), Chunk(2, 1)]),
        StepPlan(7, None, appended=[BlocksAppended(0, [20])]),
        StepPlan(8, None),
    ]


def run(worker: RankWorker, plans: list[StepPlan], is_ahead: bool) -> list[list[tuple[int, int]]]:
    """Return every step's rows and tokens."""
    if not is_ahead:
        return [[(token.row, token.token_id) for token in worker.run(plan).tokens] for plan in plans]
    outputs, launched = [], [worker.launch(plans[0])]
    for plan in [*plans[1:], None]:
        if plan is not None:
            launched.append(worker.launch(plan))
        outputs.append([(token.row, token.token_id) for token in worker.finish(launched.pop(0)).tokens])
    return outputs


@pytest.mark.parametrize("name", SAMPLINGS)
def test_recorded_steps_launched_one_ahead_give_the_tokens_of_steps_one_by_one(name):
    plans = some_plans(**SAMPLINGS[name])
    assert run(a_worker(is_recorded=True), plans, is_ahead=True) == run(a_worker(is_recorded=False), plans, False)


def test_padding_is_written_nowhere():
    worker = a_worker(is_recorded=True)
    kv = worker._kv
    before = kv.layers[0].key.clone()
    run(worker, some_plans(temperature=0.0)[:2], is_ahead=True)
    changed = (kv.layers[0].key != before).flatten(2).any(-1).nonzero()[:, 0].unique().tolist()
    assert changed == [0, 3], "blocks of the two rows, and no other"


def test_a_row_that_fails_says_so_and_leaves_the_others_alone():
    worker = a_worker(is_recorded=True)
    plans = some_plans(temperature=0.0)
    worker.run(plans[0])
    expected = worker.run(plans[1]).tokens
    again = a_worker(is_recorded=True)
    again.run(plans[0])
    again._kv.layers[0].value[3, :3] = torch.nan
    tokens = again.run(plans[1]).tokens
    assert tokens[0] == expected[0]
    assert tokens[1].error is not None


@pytest.mark.parametrize(("max_rows", "buckets"), [(1, [1]), (3, [1, 2, 3]), (20, [1, 2, 4, 8, 16, 20])])
def test_buckets_end_with_the_largest_batch(max_rows, buckets):
    assert buckets_of(max_rows) == buckets


def test_buckets_pad_no_batch_by_more_than_a_third_or_seven_rows():
    buckets = buckets_of(512)
    dice = random.Random(0)
    for num_rows in (dice.randint(1, 512) for _ in range(200)):
        padded = next(size for size in buckets if size >= num_rows)
        assert padded - num_rows <= max(7, np.ceil(num_rows / 3))
