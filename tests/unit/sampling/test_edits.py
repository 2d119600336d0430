"""Penalties, bias and forbidden tokens, seen through what greedy sampling then takes."""

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from parallel.sampling.edits import Penalties, SparseEdits
from parallel.sampling.params import SamplingParams
from parallel.sampling.rows import SamplingRows
from parallel.sampling.sampler import Sampler
from tests.support.fake_tp_group import run_ranks
from tests.support.sharded_sampling import CPU, BatchOf, sample_batch, uneven_split

WIDTH = 60
PROMPT, OUTPUT = [3, 3, 8, 40, 59], [8, 8, 21, 0]


def edited(
    logits_V: torch.Tensor, params: SamplingParams, world_size: int = 1, eos: tuple[int, ...] = ()
) -> torch.Tensor:
    """Return the logits as the row's edits leave them."""
    batch_of = BatchOf([(params, PROMPT + OUTPUT, len(PROMPT))], eos)

    def rank(group) -> torch.Tensor:
        vocab = uneven_split(WIDTH, world_size)[group.rank]
        logits = logits_V[None, vocab.start : vocab.stop].clone()
        Sampler(group, vocab, CPU).sample(logits, batch_of(vocab))
        return logits[0]

    return torch.cat(run_ranks(world_size, rank))


def params(**fields) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 100, "seed": 1, "temperature": 0, **fields})


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty_is_that_of_transformers_over_prompt_and_output(logits, penalty, world_size):
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([PROMPT + OUTPUT]), logits[None].clone())[0]
    assert torch.allclose(edited(logits, params(repetition_penalty=penalty), world_size), expected)


@pytest.mark.parametrize("world_size", [1, 3])
def test_presence_and_frequency_penalties_follow_openai_and_count_output_only(logits, world_size):
    expected = logits.clone()
    for token in set(OUTPUT):
        expected[token] -= 0.5 * OUTPUT.count(token) + 1.25
    assert torch.allclose(edited(logits, params(frequency_penalty=0.5, presence_penalty=1.25), world_size), expected)


@pytest.mark.parametrize("world_size", [1, 3])
def test_bias_is_added_after_penalties_and_unknown_tokens_are_ignored(logits, world_size):
    bias = {8: 5.0, 30: -100.0, 10**6: 9.0}
    expected = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([PROMPT + OUTPUT]), logits[None].clone())[0]
    expected[8] += 5
    expected[30] -= 100
    assert torch.allclose(edited(logits, params(repetition_penalty=1.5, logit_bias=bias), world_size), expected)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize(
    ("fields", "masked"),
    [
        ({"min_tokens": len(OUTPUT) + 1, "stop_token_ids": (5,)}, [5, 33]),
        ({"min_tokens": len(OUTPUT) + 1, "stop_token_ids": (5,), "ignore_eos": True}, [5]),
        ({"min_tokens": len(OUTPUT), "stop_token_ids": (5,)}, []),
    ],
    ids=str,
)
def test_ending_tokens_are_forbidden_until_min_tokens(logits, fields, masked, world_size):
    after = edited(logits, params(logit_bias={5: 100.0}, **fields), world_size, eos=(33,))
    assert torch.isneginf(after).nonzero()[:, 0].tolist() == masked


def test_penalties_that_grow_token_by_token_equal_those_made_at_once():
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 400, 900)
    vocab = range(100, 350)
    counting = params(frequency_penalty=1.0)
    at_once = Penalties(counting, vocab, tokens, 50)
    grown = Penalties(counting, vocab, tokens[:60], 50)
    for token in tokens[60:].tolist():
        grown.add(token)
    assert dict(zip(grown.columns.tolist(), grown.subtracted.tolist(), strict=True)) == dict(
        zip(at_once.columns.tolist(), at_once.subtracted.tolist(), strict=True)
    )
    expected = np.bincount(tokens[50:], minlength=400)[100:350]
    assert at_once.subtracted.tolist() == expected[at_once.columns].tolist()
    assert set(at_once.columns.tolist()) == {token - 100 for token in tokens.tolist() if token in vocab}


def test_sampled_tokens_are_counted_and_a_new_request_forgets_them():
    rows = SamplingRows(4, range(10), ())
    penalised = params(frequency_penalty=1.0)
    rows.start(2, penalised, np.array([1, 2]), 2)
    rows.append(np.array([0, 2]), np.array([9, 2]))
    rows.append(np.array([2]), np.array([2]))
    assert subtracted(rows) == {1: 0, 2: 2}
    rows.start(2, penalised, np.array([4]), 1)
    assert subtracted(rows) == {4: 0}
    rows.free(2)
    assert rows.select(np.array([2]), np.array([1])).edits is None


def subtracted(rows: SamplingRows) -> dict[int, float]:
    edits = rows.select(np.array([2]), np.array([4])).edits
    assert isinstance(edits, SparseEdits)
    return dict(zip(edits.penalised_columns.tolist(), edits.subtracted.tolist(), strict=True))


def test_rows_with_edits_do_not_touch_their_neighbours(logits):
    requests = [(params(), [1], 1), (params(logit_bias={4: 100.0}), [1], 1), (params(), [1], 1)]
    sampled = sample_batch(logits.expand(3, -1).contiguous(), BatchOf(requests), 2)
    assert sampled.token_ids_S.tolist() == [int(logits.argmax()), 4, int(logits.argmax())]
