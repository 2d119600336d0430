"""Greedy, temperature, logprobs and failing rows, on split vocabularies and in mixed batches."""

import math

import numpy as np
import pytest
import torch

from parallel.sampling.params import SamplingParams
from tests.support.fake_tp_group import run_ranks
from tests.support.sharded_sampling import CPU, BatchOf, frequencies, sample, sample_batch, uneven_split

WORLD_SIZES = [1, 2, 3]


def params(**fields) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 100, "seed": 1, **fields})


def random_logits(num_rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed)) * 3


MIXED = [
    params(temperature=0),
    params(seed=2),
    params(seed=3, temperature=0.5, top_p=0.8),
    params(seed=4, top_k=5, logprobs=3),
    params(seed=5, temperature=0, frequency_penalty=1.5, logprobs=0),
    params(seed=6, min_p=0.1, repetition_penalty=1.3, logit_bias={7: 3.0}),
    params(seed=7, temperature=2.0, min_tokens=5, stop_token_ids=(3,)),
]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_greedy_takes_the_most_likely_token_and_of_equals_the_lowest(world_size: int):
    logits = random_logits(20, 1000).mul(2).round()
    sampled = sample(logits, [(params(temperature=0), [0], 1)] * 20, world_size)
    assert sampled.token_ids_S.tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_plain_greedy_batch_costs_one_exchange(world_size: int):
    batch = BatchOf([(params(temperature=0), [0], 1)] * 4)
    from parallel.sampling.sampler import Sampler

    def collectives(group) -> int:
        vocab = uneven_split(100, world_size)[group.rank]
        sampler = Sampler(group, vocab, CPU)
        before = group.num_collectives
        sampler.sample(random_logits(4, 100)[:, vocab.start : vocab.stop], batch(vocab))
        return group.num_collectives - before

    # A rank that has the whole vocabulary has nobody to ask.
    assert run_ranks(world_size, collectives) == [int(world_size > 1)] * world_size


def test_a_mixed_batch_gives_the_same_tokens_for_any_number_of_ranks():
    requests = [(p, list(range(10, 20)), 6) for p in MIXED] * 8
    logits = random_logits(len(requests), 3000)
    one, two, three = (sample(logits, requests, world_size) for world_size in WORLD_SIZES)
    assert one.token_ids_S.tolist() == two.token_ids_S.tolist() == three.token_ids_S.tolist()
    for index, expected in one.logprobs.items():
        assert three.logprobs[index].top_ids == expected.top_ids
        assert three.logprobs[index].logprob == pytest.approx(expected.logprob, abs=1e-5)


def test_a_row_gets_the_same_token_alone_and_in_any_batch():
    requests = [(p, list(range(10, 20)), 6) for p in MIXED]
    logits = random_logits(len(requests), 2000)
    together = sample(logits, requests).token_ids_S
    alone = [sample(logits[[row]], [requests[row]]).token_ids_S[0] for row in range(len(requests))]
    assert together.tolist() == alone
    order = [4, 0, 6, 2, 5, 1, 3]
    shuffled = sample(logits[order], [requests[row] for row in order]).token_ids_S
    assert shuffled.tolist() == together[order].tolist()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_temperature_sampling_is_the_exact_inverse_cdf(world_size: int):
    logits = random_logits(1, 700)[0]
    drawn = frequencies(logits, params(temperature=1.4), 5000, world_size)
    expected = (logits / 1.4).softmax(0).numpy()
    assert np.abs(drawn - expected).max() <= 2 / 5000


@pytest.mark.parametrize("fields", [{}, {"top_k": 30, "top_p": 0.95}], ids=str)
def test_tokens_over_many_positions_follow_the_distribution(fields: dict):
    num_draws, width = 20_000, 30
    logits = random_logits(1, width)[0] / 3
    requests = [(params(seed=9, **fields), [0] * length, 1) for length in range(1, 201)]
    counts = np.zeros(width)
    for seed in range(num_draws // len(requests)):
        requests = [(params(seed=seed, **fields), tokens, 1) for _, tokens, _ in requests]
        drawn = sample(logits.expand(len(requests), -1).contiguous(), requests)
        counts += np.bincount(drawn.token_ids_S, minlength=width)
    probabilities = logits.double().softmax(0).numpy()
    if fields:
        order = np.argsort(-probabilities)
        outside = order[(probabilities[order].cumsum() - probabilities[order]) >= 0.95]
        assert not counts[outside].any()
        probabilities[outside] = 0
        probabilities /= probabilities.sum()
    inside = probabilities > 0
    expected = probabilities[inside] * num_draws
    chi_square = ((counts[inside] - expected) ** 2 / expected).sum()
    degrees = inside.sum() - 1
    assert chi_square < degrees + 6 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_logprobs_are_the_models_own_whatever_changes_the_logits(world_size: int):
    logits = random_logits(2, 900)
    changed = params(temperature=0.3, top_k=4, logprobs=5, logit_bias={11: 50.0}, presence_penalty=2.0)
    sampled = sample(logits, [(params(), [1], 1), (changed, [11, 12], 1)], world_size)
    assert list(sampled.logprobs) == [1]
    expected = logits[1].double().log_softmax(0)
    top = expected.topk(5)
    assert sampled.token_ids_S[1] == 11
    assert sampled.logprobs[1].logprob == pytest.approx(expected[11].item(), abs=1e-5)
    assert sampled.logprobs[1].top_ids == top.indices.tolist()
    assert sampled.logprobs[1].top_logprobs == pytest.approx(top.values.tolist(), abs=1e-5)


def test_logprobs_of_zero_reports_the_chosen_token_only():
    sampled = sample(random_logits(1, 50), [(params(logprobs=0), [1], 1)])
    assert sampled.logprobs[0].top_ids == [] and sampled.logprobs[0].logprob < 0


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("victim", range(len(MIXED)))
def test_a_row_with_a_bad_logit_fails_alone(world_size: int, bad: float, victim: int):
    requests = [(p, list(range(10, 20)), 6) for p in MIXED]
    logits = random_logits(len(requests), 1200)
    healthy = sample(logits, requests, world_size)
    broken_logits = logits.clone()
    broken_logits[victim, 1100] = bad
    broken = sample(broken_logits, requests, world_size)
    assert broken.is_failed_S.tolist() == [row == victim for row in range(len(requests))]
    others = np.arange(len(requests)) != victim
    assert broken.token_ids_S[others].tolist() == healthy.token_ids_S[others].tolist()
    assert victim not in broken.logprobs and broken.token_ids_S[victim] == 0


def test_a_row_whose_every_token_is_forbidden_fails_alone():
    forbidden = params(min_tokens=3, stop_token_ids=tuple(range(8)))
    sampled = sample(random_logits(2, 8), [(forbidden, [0], 1), (params(temperature=0), [0], 1)])
    assert sampled.is_failed_S.tolist() == [True, False]


@pytest.mark.parametrize("temperature", [1e-45, 1e-8, 100.0])
def test_extreme_temperatures_stay_finite(temperature: float):
    logits = random_logits(1, 300) * 30
    batch = BatchOf([(params(temperature=temperature, top_p=0.99), [0], 1)], uniforms=[0.5])
    sampled = sample_batch(logits, batch, 1)
    assert not sampled.is_failed_S.any()
    if temperature < 1:
        assert sampled.token_ids_S[0] == logits.argmax()
