"""A step launched before the one before it is finished goes on with tokens that only the device knows."""

import numpy as np
import torch

from parallel.plan import Chunk, RowStart, StepPlan
from parallel.rank.forward import OpByOp
from parallel.rank.rows import StepInputs
from parallel.rank.stepping import DirectRunner
from parallel.rank.worker import RankWorker
from parallel.sampling.params import SamplingParams
from parallel.sampling.rows import SampleBatch
from tests.support.tiny_model import (
    BLOCK_SIZE,
    CPU,
    MAX_MODEL_LEN,
    MAX_ROWS,
    empty_cache,
    greedy_tokens,
    solo_sampler,
    tiny_model,
)

PROMPTS = {0: [3, 14, 15, 9, 2, 6], 1: [5, 35, 8]}


class DeviceRunner:
    """Keeps each row's last token to itself, as a GPU does, and says that nothing is done until it is waited for."""

    def __init__(self, runner: DirectRunner) -> None:
        self._runner = runner
        self._last_token = np.zeros(MAX_ROWS, np.int64)
        self.num_unknown: list[int] = []

    def launch(self, inputs: StepInputs, batch: SampleBatch):
        self.num_unknown.append(len(inputs.unknown_T))
        assert (inputs.token_ids_T[inputs.unknown_T] == 0).all(), "the host cannot know these"
        inputs.token_ids_T[inputs.unknown_T] = self._last_token[inputs.unknown_rows]
        known = {name: value for name, value in vars(inputs).items() if name not in ("unknown_T", "unknown_rows")}
        nothing = np.empty(0, np.int64)
        sampled = self._runner.launch(StepInputs(**known, unknown_T=nothing, unknown_rows=nothing), batch).wait()
        self._last_token[inputs.sampled_rows_S] = sampled.token_ids_S
        return LateTokens(sampled)


class LateTokens:
    def __init__(self, sampled) -> None:
        self._sampled = sampled

    def is_done(self) -> bool:
        return False

    def wait(self):
        return self._sampled


def a_worker(model) -> tuple[RankWorker, DeviceRunner]:
    kv = empty_cache(model, 64, BLOCK_SIZE)
    runner = DeviceRunner(DirectRunner(OpByOp(model, kv, CPU), solo_sampler(model)))
    worker = RankWorker(model, runner, kv, max_rows=MAX_ROWS, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE)
    return worker, runner


def start(row: int, prompt: list[int], **sampling) -> RowStart:
    params = SamplingParams(max_tokens=20, seed=1, **({"temperature": 0.0} | sampling))
    return RowStart(row, prompt, len(prompt), 0, [10 * row + block for block in range(8)], params)


def tokens_one_ahead(worker: RankWorker, plans: list[StepPlan]) -> dict[int, list[int]]:
    """Launch every plan before the one before it is finished."""
    outputs: dict[int, list[int]] = {}
    launched = [worker.launch(plans[0])]
    for plan in [*plans[1:], None]:
        if plan is not None:
            launched.append(worker.launch(plan))
        for token in worker.finish(launched.pop(0)).tokens:
            outputs.setdefault(token.row, []).append(token.token_id)
    return outputs


def test_steps_launched_one_ahead_give_the_tokens_of_steps_one_by_one():
    model = tiny_model()
    worker, runner = a_worker(model)
    prefill = StepPlan(
        0,
        [Chunk(row, len(prompt)) for row, prompt in PROMPTS.items()],
        started=[start(*item) for item in PROMPTS.items()],
    )
    outputs = tokens_one_ahead(worker, [prefill, *(StepPlan(step, None) for step in range(1, 8))])
    assert outputs == {row: greedy_tokens(model, prompt, 8) for row, prompt in PROMPTS.items()}
    assert runner.num_unknown == [0, *[2] * 7]


def test_a_row_that_penalises_repetition_is_told_every_token_before_it_goes_on():
    def outputs(is_ahead: bool) -> dict[int, list[int]]:
        worker, runner = a_worker(tiny_model())
        prefill = StepPlan(0, [Chunk(0, 6)], started=[start(0, PROMPTS[0], frequency_penalty=2.0)])
        plans = [prefill, *(StepPlan(step, None) for step in range(1, 8))]
        if is_ahead:
            tokens = tokens_one_ahead(worker, plans)
            assert runner.num_unknown == [0] * 8
            return tokens
        return {0: [worker.run(plan).tokens[0].token_id for plan in plans]}

    assert outputs(is_ahead=True) == outputs(is_ahead=False)


def test_a_token_for_a_request_that_left_its_row_does_not_reach_the_next_one():
    model = tiny_model()
    worker, _ = a_worker(model)
    first = worker.launch(StepPlan(0, [Chunk(0, 3)], started=[start(0, PROMPTS[1])]))
    stale = worker.launch(StepPlan(1, None))
    worker.finish(first)
    # The leader ended the request on its first token, while a second one was being sampled.
    restarted = worker.launch(StepPlan(2, [Chunk(0, 6)], freed=[0], started=[start(0, PROMPTS[0])]))
    worker.finish(stale)
    outputs = [token.token_id for token in worker.finish(restarted).tokens]
    outputs += [worker.run(StepPlan(step, None)).tokens[0].token_id for step in range(3, 7)]
    assert outputs == greedy_tokens(model, PROMPTS[0], 5)


def test_a_step_without_tokens_is_done_at_once():
    worker, runner = a_worker(tiny_model())
    launched = worker.launch(StepPlan(0, []))
    assert launched.is_done()
    assert worker.finish(launched).tokens == []
    assert runner.num_unknown == []
    assert torch.is_inference_mode_enabled() is False
