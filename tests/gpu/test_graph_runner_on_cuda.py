"""Recorded steps, launched one ahead on a real GPU, give the tokens of steps one by one; no launch waits."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

if not torch.cuda.is_available():
    # What follows holds Triton kernels, and Triton may be missing.
    pytest.skip("needs a CUDA device", allow_module_level=True)

from parallel.cuda.row_kernels import CudaRowKernels  # noqa: E402
from parallel.cuda.tier import CudaTier  # noqa: E402
from parallel.groups.solo import SoloGroup  # noqa: E402
from parallel.kv_cache import KVCache  # noqa: E402
from parallel.layers.shard import Storage  # noqa: E402
from parallel.models.registry import build_model  # noqa: E402
from parallel.plan import BlocksAppended, Chunk, RowStart, StepPlan  # noqa: E402
from parallel.rank.forward import OpByOp  # noqa: E402
from parallel.rank.rows import max_blocks_of_row  # noqa: E402
from parallel.rank.stepping import DirectRunner  # noqa: E402
from parallel.rank.tier import StepLimits  # noqa: E402
from parallel.rank.worker import RankWorker  # noqa: E402
from parallel.sampling.params import SamplingParams  # noqa: E402
from parallel.sampling.sampler import Sampler  # noqa: E402
from parallel.sharding import ShardPlan  # noqa: E402
from tests.support.tiny_specs import a_spec  # noqa: E402

DEVICE = torch.device("cuda")
BLOCK_SIZE, MAX_ROWS, MAX_MODEL_LEN, NUM_BLOCKS = 16, 5, 200, 64
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.9},
    "filters": {"temperature": 0.9, "top_p": 0.8, "top_k": 20},
    "penalties": {"temperature": 0.0, "frequency_penalty": 2.0},
    "logprobs": {"temperature": 0.0, "logprobs": 2},
}


def a_worker(is_recorded: bool) -> RankWorker:
    """float32, so that the order of a sum decides nothing."""
    spec = a_spec(hidden_size=128, num_heads=4, num_kv_heads=2, head_dim=64, intermediate_size=256, vocab_size=1000)
    tier = CudaTier(torch.float32, DEVICE)
    model = build_model(spec, ShardPlan.of(spec, 1).ranks[0], SoloGroup(), Storage(torch.float32, DEVICE, tier.ops))
    generator = torch.Generator(DEVICE).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    layout = tier.ops.kv_layout(BLOCK_SIZE, spec.num_kv_heads, spec.head_dim, torch.float32)
    kv = KVCache(spec.num_layers, NUM_BLOCKS, layout, DEVICE)
    if is_recorded:
        limits = StepLimits(MAX_ROWS, max_blocks_of_row(MAX_MODEL_LEN, BLOCK_SIZE))
        runner = tier.runner(model, kv, SoloGroup(), limits).runner
    else:
        runner = DirectRunner(OpByOp(model, kv, DEVICE), Sampler(SoloGroup(), model.vocab, DEVICE, CudaRowKernels()))
    return RankWorker(model, runner, kv, max_rows=MAX_ROWS, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)


def start(row: int, prompt_len: int, sampling) -> RowStart:
    params = SamplingParams(max_tokens=100, seed=row + 1, **sampling)
    return RowStart(row, list(range(3, 3 + prompt_len)), prompt_len, 0, list(range(8 * row, 8 * row + 4)), params)


def some_plans(sampling) -> list[StepPlan]:
    """Prompts of different lengths, long decode runs, prompts among decodes, rows that leave and come back."""
    steady = [StepPlan(0, None) for _ in range(6)]
    return [
        StepPlan(0, [Chunk(0, 6), Chunk(1, 23)], started=[start(0, 6, sampling), start(1, 23, sampling)]),
        *steady,
        StepPlan(0, [Chunk(0, 1), Chunk(1, 1), Chunk(2, 30)], started=[start(2, 37, sampling)]),
        StepPlan(0, [Chunk(0, 1), Chunk(1, 1), Chunk(2, 7)]),
        *steady,
        StepPlan(0, [Chunk(0, 1), Chunk(2, 1)], freed=[1]),
        StepPlan(0, [Chunk(0, 1), Chunk(1, 9), Chunk(2, 1)], started=[start(1, 9, sampling)]),
        *steady,
        StepPlan(0, None, appended=[BlocksAppended(0, [60]), BlocksAppended(2, [61])]),
        *steady,
    ]


def run_ahead(worker: RankWorker, plans: list[StepPlan]) -> list[list[tuple[int, int]]]:
    outputs, launched = [], [worker.launch(plans[0])]
    for plan in [*plans[1:], None]:
        if plan is not None:
            launched.append(worker.launch(plan))
        outputs.append([(token.row, token.token_id) for token in worker.finish(launched.pop(0)).tokens])
    return outputs


@pytest.mark.parametrize("name", SAMPLINGS)
def test_recorded_steps_one_ahead_give_the_tokens_of_steps_one_by_one(name):
    plans = some_plans(SAMPLINGS[name])
    direct = a_worker(is_recorded=False)
    expected = [[(token.row, token.token_id) for token in direct.run(plan).tokens] for plan in plans]
    assert run_ahead(a_worker(is_recorded=True), plans) == expected


def test_launching_a_step_waits_for_nothing():
    """torch raises for every call of its own that waits for the device."""
    worker = a_worker(is_recorded=True)
    plans = some_plans(SAMPLINGS["filters"])
    # Once before, because kernels that are compiled and page-locked memory that is taken do wait.
    run_ahead(worker, plans)
    worker.run(StepPlan(0, [], freed=[0, 1, 2]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_ahead(worker, plans)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_launch_returns_while_the_device_is_busy():
    worker = a_worker(is_recorded=True)
    plans = some_plans(SAMPLINGS["temperature"])
    for plan in plans[:3]:
        worker.run(plan)
    torch.cuda._sleep(10**9)
    launched = worker.launch(plans[3])
    assert not launched.is_done()
    assert len(worker.finish(launched).tokens) == 2
