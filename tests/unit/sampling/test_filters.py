"""Top-k, top-p and min-p against transformers' warpers and against a plain oracle, whole and sharded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from parallel.sampling import sampler
from parallel.sampling.params import SamplingParams
from tests.support.sharded_sampling import BatchOf, frequencies, sample, sample_batch

GRID = 1500


def random_logits(width: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed)) * spread


def hf_probabilities(logits_V: torch.Tensor, params: SamplingParams) -> np.ndarray:
    """Return what transformers would sample from."""
    scores, ids = logits_V[None].clone(), torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k is not None:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    scores = TopPLogitsWarper(params.top_p)(ids, scores)
    scores = MinPLogitsWarper(params.min_p)(ids, scores)
    return scores.softmax(1)[0].numpy()


FILTERS = [
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.3},
    {"top_p": 0.9, "temperature": 1.7},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8, "temperature": 1.3},
    {"top_k": 3, "top_p": 0.999, "min_p": 0.2},
    {"top_p": 0.95, "min_p": 0.01, "temperature": 2.5},
]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("fields", FILTERS, ids=str)
def test_the_distribution_is_that_of_transformers(fields: dict, world_size: int):
    params = SamplingParams(max_tokens=1, seed=0, **fields)
    logits = random_logits(700)
    drawn = frequencies(logits, params, GRID, world_size)
    expected = hf_probabilities(logits, params)
    assert np.abs(drawn - expected).max() <= 2 / GRID
    assert not drawn[expected == 0].any()


def oracle_kept(logits_V: np.ndarray, params: SamplingParams) -> list[int]:
    """Return the tokens the filters leave, by definition: sort by (logit, lower id), then cut three prefixes."""
    order = sorted(range(len(logits_V)), key=lambda token: (-logits_V[token], token))
    weights = np.exp((logits_V[order].astype(np.float64) - logits_V.max()) / np.float32(params.temperature))
    num_top_k = len(order) if params.top_k is None else min(params.top_k, len(order))
    before = np.concatenate(([0.0], weights.cumsum()[:-1]))
    mass = weights[:num_top_k].sum()
    num_top_p = len(order) if params.top_p >= 1 else int((before < params.top_p * mass).sum())
    num_min_p = int((weights >= params.min_p).sum())
    return order[: max(1, min(num_top_k, num_top_p, num_min_p))]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(4, 900),
    num_levels=st.sampled_from([1, 2, 5, 10_000]),
    world_size=st.integers(1, 3),
    top_k=st.none() | st.integers(1, 1000),
    top_p=st.just(1.0) | st.floats(0.01, 0.99),
    min_p=st.just(0.0) | st.floats(0.001, 0.9),
    temperature=st.sampled_from([0.1, 0.8, 1.0, 5.0]),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_any_filter_on_any_split_draws_from_the_oracles_set_in_its_order(
    seed, width, num_levels, world_size, top_k, top_p, min_p, temperature, uniform
):
    params = SamplingParams(max_tokens=1, seed=0, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    # Few levels make many ties, also at the edge of what a rank sends.
    logits = (np.random.default_rng(seed).standard_normal(width) * num_levels).round() / num_levels * 3
    logits = logits.astype(np.float32)
    sampled = sample_batch(torch.from_numpy(logits)[None], BatchOf([(params, [0], 1)], uniforms=[uniform]), world_size)
    kept = oracle_kept(logits, params)
    assert sampled.token_ids_S[0] in kept
    if top_k is not None or top_p < 1 or min_p > 0:
        weights = np.exp((logits[kept].astype(np.float64) - logits.max()) / np.float32(temperature)).cumsum()
        expected = int((weights <= uniform * weights[-1]).sum())
        near = np.abs(weights - uniform * weights[-1]).min() < 1e-9 * weights[-1]
        assert near or sampled.token_ids_S[0] == kept[min(expected, len(kept) - 1)]


def test_a_nucleus_wider_than_the_candidates_is_still_exact():
    # 4 x 1024 tokens, nearly flat: top_p=0.9 keeps about 3,600 of them.
    width = 4 * sampler.CANDIDATE_WIDTHS[-1]
    logits = random_logits(width, spread=0.1)
    params = SamplingParams(max_tokens=1, seed=0, top_p=0.9)
    drawn = frequencies(logits, params, 500, world_size=2)
    expected = hf_probabilities(logits, params)
    assert not drawn[expected == 0].any()
    assert np.abs(drawn.cumsum() - expected.cumsum()).max() < 0.2


def test_a_narrow_nucleus_needs_one_exchange_of_candidates(monkeypatch):
    # Turns red when the widths are no longer tried from narrow to wide.
    seen: list[int] = []
    original = sampler.ShardedVocabulary.candidates
    monkeypatch.setattr(
        sampler.ShardedVocabulary,
        "candidates",
        lambda self, logits, width: seen.append(width) or original(self, logits, width),
    )
    sample(random_logits(5000)[None], [(SamplingParams(max_tokens=1, seed=0, top_p=0.5), [0], 1)])
    assert seen == [sampler.CANDIDATE_WIDTHS[0]]
