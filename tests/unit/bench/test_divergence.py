"""Divergences between distributions, as the quality tables report them."""

import math

import pytest
import torch

from benchmarks.formats.divergence import divergence

TOKEN_IDS = [0, 2, 1] * 40


def logits(seed: int, num_tokens: int = len(TOKEN_IDS), vocabulary: int = 7) -> torch.Tensor:
    return torch.randn(num_tokens, vocabulary, generator=torch.Generator().manual_seed(seed))


def test_a_distribution_does_not_diverge_from_itself_nor_from_its_logits_shifted():
    found = divergence(logits(1), logits(1) + 5, TOKEN_IDS)
    assert found.mean_kl == pytest.approx(0, abs=1e-9) and found.max_kl == pytest.approx(0, abs=1e-9)
    assert found.top1_agreement == 1


def test_the_divergence_is_that_of_the_reference_from_the_format():
    reference = torch.tensor([[0.5, 0.25, 0.25]]).log().repeat(len(TOKEN_IDS), 1)
    other = torch.tensor([[0.25, 0.5, 0.25]]).log().repeat(len(TOKEN_IDS), 1)
    other[7] = torch.tensor([0.25, 0.25, 0.5]).log()
    found = divergence(reference, other, TOKEN_IDS)
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert found.mean_kl == pytest.approx(expected, rel=1e-5) and found.max_kl == pytest.approx(expected, rel=1e-5)
    assert found.top1_agreement == 0


def test_position_t_predicts_the_token_after_it():
    certain = torch.full((len(TOKEN_IDS), 7), -50.0)
    certain[torch.arange(len(TOKEN_IDS) - 1), torch.tensor(TOKEN_IDS[1:])] = 50
    assert divergence(certain, certain, TOKEN_IDS).perplexity == pytest.approx(1, abs=1e-4)
    uniform = torch.zeros(len(TOKEN_IDS), 7)
    assert divergence(uniform, uniform, TOKEN_IDS).perplexity == pytest.approx(7, rel=1e-5)
