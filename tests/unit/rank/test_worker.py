"""A rank's steps on a tiny model: chunked, batched and cached equals the whole text computed anew."""

import pytest
import torch

from parallel.plan import BlocksAppended, Chunk, RowStart, StepPlan
from parallel.sampling.params import SamplingParams
from parallel.sampling.rows import SamplingRows
from tests.support.tiny_model import BLOCK_SIZE, greedy_tokens, tiny_model, tiny_worker, whole_logits

PROMPTS = [[5, 9, 33, 2, 60, 1, 7, 7, 12, 40, 3], [8], list(range(1, 40))]
GREEDY = SamplingParams(max_tokens=10, seed=0, temperature=0)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def start(
    row: int, tokens: list[int], sampling: SamplingParams = GREEDY, num_computed: int = 0, blocks=None
) -> RowStart:
    return RowStart(row, tokens, len(tokens), num_computed, blocks or list(range(10 * row, 10 * row + 9)), sampling)


def test_rows_in_one_batch_continue_as_each_would_alone(model):
    worker = tiny_worker(model)
    plan = StepPlan(
        0, [Chunk(row, len(p)) for row, p in enumerate(PROMPTS)], started=[start(r, p) for r, p in enumerate(PROMPTS)]
    )
    tokens = [[token.token_id] for token in worker.run(plan).tokens]
    for step in range(1, 12):
        for row, token in enumerate(worker.run(StepPlan(step, None)).tokens):
            assert token.row == row
            tokens[row].append(token.token_id)
    assert tokens == [greedy_tokens(model, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("chunk", [1, 3, 8, 17])
def test_a_prompt_in_chunks_gives_the_tokens_of_a_whole_one(model, chunk: int):
    worker, prompt = tiny_worker(model), PROMPTS[2]
    results, done = [], 0
    started = [start(0, prompt)]
    while done < len(prompt):
        num_tokens = min(chunk, len(prompt) - done)
        results.append(worker.run(StepPlan(done, [Chunk(0, num_tokens)], started=started)).tokens)
        done, started = done + num_tokens, []
    assert not any(results[:-1]), "only the chunk that reaches the prompt's end samples"
    assert [token.token_id for token in results[-1]] == greedy_tokens(model, prompt, 1)


def test_blocks_appended_as_the_row_grows_are_used(model):
    worker, prompt = tiny_worker(model), PROMPTS[0]
    tokens = [worker.run(StepPlan(0, [Chunk(0, 11)], started=[start(0, prompt, blocks=[5, 3])])).tokens[0].token_id]
    for step in range(1, 20):
        position = len(prompt) + step - 1
        appended = [BlocksAppended(0, [20 + step])] if position % BLOCK_SIZE == 0 else []
        tokens.append(worker.run(StepPlan(step, None, appended=appended)).tokens[0].token_id)
    assert tokens == greedy_tokens(model, prompt, 20)


def test_a_prefix_that_another_row_computed_is_not_computed_again(model):
    worker, prompt = tiny_worker(model), PROMPTS[2]
    worker.run(StepPlan(0, [Chunk(0, len(prompt))], started=[start(0, prompt)]))
    other = [*prompt[:32], 50, 51]
    hit = start(1, other, num_computed=32, blocks=[0, 1, 2, 3, 30])
    result = worker.run(StepPlan(1, [Chunk(1, 2)], started=[hit], freed=[0]))
    assert [token.token_id for token in result.tokens] == greedy_tokens(model, other, 1)


def test_a_row_given_to_a_new_request_in_the_plan_that_frees_it_starts_afresh(model):
    worker = tiny_worker(model)
    worker.run(StepPlan(0, [Chunk(0, 11)], started=[start(0, PROMPTS[0])]))
    worker.run(StepPlan(1, None))
    result = worker.run(StepPlan(2, [Chunk(0, 39)], freed=[0], started=[start(0, PROMPTS[2])]))
    assert [token.token_id for token in result.tokens] == greedy_tokens(model, PROMPTS[2], 1)


def test_a_preempted_row_continues_with_the_tokens_that_would_have_come(model):
    sampling = SamplingParams(max_tokens=30, seed=77, temperature=1.5, frequency_penalty=0.5, logprobs=2)
    worker, prompt = tiny_worker(model), PROMPTS[0]
    first = worker.run(StepPlan(0, [Chunk(0, 11)], started=[start(0, prompt, sampling)])).tokens
    tokens = [first[0].token_id, *(worker.run(StepPlan(s, None)).tokens[0].token_id for s in range(1, 12))]
    resumed = RowStart(4, [*prompt, *tokens[:5]], len(prompt), 0, list(range(40, 50)), sampling)
    again = worker.run(StepPlan(20, [Chunk(4, 16)], freed=[0], started=[resumed])).tokens
    rest = [again[0].token_id, *(worker.run(StepPlan(s, None)).tokens[0].token_id for s in range(21, 27))]
    assert rest == tokens[5:]


def test_logprobs_are_those_of_the_whole_text(model):
    worker, prompt = tiny_worker(model), PROMPTS[0]
    sampling = SamplingParams(max_tokens=2, seed=0, temperature=0, logprobs=4)
    token = worker.run(StepPlan(0, [Chunk(0, 11)], started=[start(0, prompt, sampling)])).tokens[0]
    expected = whole_logits(model, prompt).log_softmax(0).topk(4)
    assert token.logprobs is not None
    assert token.logprobs.top_ids == expected.indices.tolist()
    assert token.logprobs.top_logprobs == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert token.logprobs.logprob == pytest.approx(expected.values[0].item(), abs=1e-4)


def test_a_request_whose_logits_are_not_finite_ends_alone_and_a_plan_under_way_still_fits():
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[13] = float("nan")
    worker = tiny_worker(model)
    healthy = PROMPTS[1]
    plan = StepPlan(0, [Chunk(0, 3), Chunk(1, 1)], started=[start(0, [4, 2, 13]), start(1, healthy)])
    bad, good = worker.run(plan).tokens
    assert bad.error is not None and bad.error.code == "replica_failed"
    # Sent before the leader knew of the failure, so it still names the row.
    _, second = worker.run(StepPlan(1, None)).tokens
    assert [good.token_id, second.token_id] == greedy_tokens(model, healthy, 2)


def test_a_plan_without_chunks_computes_nothing(model):
    result = tiny_worker(model).run(StepPlan(3, []))
    assert (result.step, result.tokens) == (3, [])


def test_warm_up_leaves_no_trace(model):
    worker = tiny_worker(model)
    worker.warm_up(20)
    tokens = worker.run(StepPlan(0, [Chunk(0, 11)], started=[start(0, PROMPTS[0])])).tokens
    assert [token.token_id for token in tokens] == greedy_tokens(model, PROMPTS[0], 1)


def test_a_request_whose_sampling_breaks_is_told_and_its_neighbours_go_on(model, monkeypatch):
    def breaks_for_one(self, row, params, *rest):
        if params.seed == 666:
            raise OverflowError("Python int too large to convert to C long")
        start_sampling(self, row, params, *rest)

    start_sampling = SamplingRows.start
    monkeypatch.setattr(SamplingRows, "start", breaks_for_one)
    worker = tiny_worker(model)
    poison = SamplingParams(max_tokens=10, seed=666)
    started = [start(0, PROMPTS[0]), start(1, PROMPTS[1], poison)]
    well, ill = worker.run(StepPlan(0, [Chunk(0, 11), Chunk(1, 1)], started=started)).tokens
    assert (well.token_id, well.error) == (greedy_tokens(model, PROMPTS[0], 1)[0], None)
    assert ill.error is not None and ill.error.code == "internal_error"
    # Its row is given to somebody else, who is well again.
    plan = StepPlan(1, [Chunk(0, 1), Chunk(1, 1)], freed=[1], started=[start(1, PROMPTS[1])])
    assert [token.error for token in worker.run(plan).tokens] == [None, None]
