"""Choosing tokens in C against tier 0, which says what is meant, and against the distribution itself."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel.cpu.library import KernelLibrary
from parallel.cpu.sampling import CpuRowKernels, GreedyInOneCall
from parallel.cpu.threads import ThreadPool
from parallel.groups.base import TPGroup
from parallel.groups.solo import SoloGroup
from parallel.sampling.params import SamplingParams
from parallel.sampling.rows import NO_TOP_K, SampleBatch
from parallel.sampling.sampler import Sampled, Sampler
from tests.support.fake_tp_group import run_ranks
from tests.support.kernel_libraries import LEVELS, kernel_library
from tests.support.sharded_sampling import CPU, BatchOf, uneven_split

NAN, INF = float("nan"), float("inf")
NOTHING = np.empty(0, np.int64)
WIDTHS = (1, 5, 64, 300, 5000)
"""Less than a vector, less than a block, several, and none of them a multiple of anything but 64."""


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest) -> KernelLibrary:
    return kernel_library(request.param)


@pytest.fixture
def kernels(library: KernelLibrary) -> CpuRowKernels:
    return CpuRowKernels(library, ThreadPool(library, 1))


def random_logits(rows: int, width: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


def draws(
    uniform: NDArray[np.float64],
    temperature: float | NDArray = 1.0,
    top_k: int | NDArray = NO_TOP_K,
    top_p: float | NDArray = 1.0,
    min_p: float | NDArray = 0.0,
) -> SampleBatch:
    """Rows that all draw; a number means the same for all."""
    rows = len(uniform)
    return SampleBatch(
        random_P=np.arange(rows),
        uniform_P=uniform,
        temperature_P=np.full(rows, temperature, np.float32),
        top_k_P=np.full(rows, top_k, np.int64),
        top_p_P=np.full(rows, top_p, np.float64),
        min_p_P=np.full(rows, min_p, np.float64),
        logprobs_L=NOTHING,
        num_logprobs_L=NOTHING,
        edits=None,
    )


def mixed_draws(rows: int, width: int, seed: int) -> SampleBatch:
    """Rows with every combination of filters."""
    numbers = np.random.default_rng(seed)

    def some(values: NDArray, otherwise: float) -> NDArray:
        return np.where(numbers.random(rows) < 0.5, values, otherwise)

    return draws(
        numbers.random(rows),
        temperature=numbers.uniform(0.2, 2, rows),
        top_k=some(numbers.integers(1, width + 1, rows), NO_TOP_K).astype(np.int64),
        top_p=some(numbers.uniform(0.05, 1, rows), 1.0),
        min_p=some(numbers.uniform(0, 0.5, rows), 0.0),
    )


def sample(logits_SV: Tensor, batch: SampleBatch, kernels: CpuRowKernels | None) -> Sampled:
    return Sampler(SoloGroup(), range(logits_SV.shape[1]), CPU, kernels).sample(logits_SV.clone(), batch)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scale", [0.3, 3.0, 10.0])
def test_filters_choose_what_tier_0_chooses(kernels: CpuRowKernels, width: int, scale: float):
    logits_SV = random_logits(64, width, seed=width, scale=scale)
    batch = mixed_draws(64, width, seed=width)
    ours, reference = sample(logits_SV, batch, kernels), sample(logits_SV, batch, None)
    # A sum in another order may move the end of a nucleus, or a draw, past its neighbour.
    assert (ours.token_ids_S != reference.token_ids_S).sum() <= 1


def test_equal_logits_are_cut_where_tier_0_cuts_them(kernels: CpuRowKernels):
    logits_SV = random_logits(64, 700, scale=2.0).round()
    batch = mixed_draws(64, 700, seed=1)
    ours, reference = sample(logits_SV, batch, kernels), sample(logits_SV, batch, None)
    assert (ours.token_ids_S != reference.token_ids_S).sum() <= 1


def test_draws_follow_the_distribution(kernels: CpuRowKernels):
    num_draws, width = 4096, 40
    logits_V = random_logits(1, width, scale=1.5)[0]
    evenly = (np.arange(num_draws) + 0.5) / num_draws
    counts = np.bincount(
        sample(logits_V.expand(num_draws, -1), draws(evenly, temperature=0.8), kernels).token_ids_S, minlength=width
    )
    probabilities = torch.softmax(logits_V.double() / 0.8, 0).numpy()
    assert np.abs(counts - num_draws * probabilities).max() <= 1.01


def test_nucleus_is_drawn_in_proportion(kernels: CpuRowKernels):
    num_draws = 1000
    logits_V = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]))
    evenly = (np.arange(num_draws) + 0.5) / num_draws
    counts = np.bincount(
        sample(logits_V.expand(num_draws, -1), draws(evenly, top_p=0.8), kernels).token_ids_S, minlength=5
    )
    # 0.4 and 0.3 are less than 0.8, with 0.15 it is reached.
    np.testing.assert_allclose(counts / num_draws, np.array([0, 0.4, 0, 0.3, 0.15]) / 0.85, atol=0.002)


@pytest.mark.parametrize("width", [1, 7, 256, 5000])
def test_extreme_uniform_numbers_give_tokens_that_have_a_probability(kernels: CpuRowKernels, width: int):
    logits_SV = random_logits(4, width)
    logits_SV[:, 0] = 50.0
    logits_SV[:, 1::2] = -INF
    for uniform in (0.0, 1 - 2**-53):
        for batch in (draws(np.full(4, uniform)), draws(np.full(4, uniform), top_k=width, top_p=0.999999)):
            token_ids_S = sample(logits_SV, batch, kernels).token_ids_S
            assert torch.isfinite(logits_SV[range(4), token_ids_S]).all()


def test_cold_row_takes_the_most_likely_token(kernels: CpuRowKernels):
    logits_SV = random_logits(8, 3000)
    token_ids_S = sample(logits_SV, draws(np.linspace(0, 0.99, 8), temperature=1e-5), kernels).token_ids_S
    assert torch.equal(torch.from_numpy(token_ids_S), logits_SV.argmax(1))


@pytest.mark.parametrize("width", WIDTHS)
def test_best_is_the_lowest_index_of_the_largest(kernels: CpuRowKernels, width: int):
    logits_SV = random_logits(9, width, scale=1.0).round()
    best_S, index_S = kernels.best(logits_SV)
    expected = [int((row == row.max()).nonzero()[0]) for row in logits_SV]
    assert index_S.tolist() == expected and torch.equal(best_S, logits_SV.amax(1))


@pytest.mark.parametrize("place", [0, 17, 255, 256, 299])
def test_row_that_is_not_sound_fails_alone(kernels: CpuRowKernels, place: int):
    logits_SV = random_logits(5, 300)
    logits_SV[1, place], logits_SV[2, place], logits_SV[3] = NAN, INF, -INF
    sampled = sample(logits_SV, draws(np.full(5, 0.5), top_p=0.9), kernels)
    assert sampled.is_failed_S.tolist() == [False, True, True, True, False]
    assert sampled.token_ids_S[1:4].tolist() == [0, 0, 0]


@pytest.mark.parametrize("width", WIDTHS)
def test_top_is_the_start_of_a_stable_sort(kernels: CpuRowKernels, width: int):
    logits_SV = random_logits(4, width, scale=2.0).round()
    logits_SV[0, width // 2] = -0.0
    values_SV, order_SV = logits_SV.sort(dim=1, descending=True, stable=True)
    for top in {1, min(20, width), width}:
        top_SK, index_SK = kernels.top(logits_SV, top)
        assert torch.equal(top_SK, values_SV[:, :top]) and torch.equal(index_SK, order_SV[:, :top])


def test_top_of_a_row_with_nan_stays_inside_the_row(kernels: CpuRowKernels):
    logits_SV = random_logits(2, 100)
    logits_SV[0, 3:] = NAN
    top_SK, index_SK = kernels.top(logits_SV, 20)
    assert top_SK[0, :3].tolist() == sorted(logits_SV[0, :3].tolist(), reverse=True)
    assert index_SK.min() >= 0 and index_SK.max() < 100


def test_logprobs_and_edits_are_those_of_tier_0(kernels: CpuRowKernels):
    requests = [
        (SamplingParams(max_tokens=9, seed=1, temperature=0, logprobs=5), [3, 4, 4], 2),
        (SamplingParams(max_tokens=9, seed=2, logprobs=3, frequency_penalty=1.5, logit_bias={7: 4.0}), [7, 7, 9], 1),
        (SamplingParams(max_tokens=9, seed=3, top_p=0.7, top_k=20, min_tokens=5), [1, 2], 1),
    ]
    logits_SV = random_logits(3, 2000)
    batch = BatchOf(requests, eos_token_ids=[5])(range(2000))
    ours, reference = sample(logits_SV, batch, kernels), sample(logits_SV, batch, None)
    assert ours.token_ids_S.tolist() == reference.token_ids_S.tolist()
    assert ours.logprobs == reference.logprobs


@pytest.mark.parametrize("world_size", [2, 3])
def test_split_vocabulary_is_sampled_as_tier_0_does(library: KernelLibrary, world_size: int):
    width = 3000
    logits_SV = random_logits(48, width, scale=2.0).round()
    batch = mixed_draws(48, width, seed=5)
    shards = uneven_split(width, world_size)

    def rank(group: TPGroup) -> Sampled:
        vocab = shards[group.rank]
        own = CpuRowKernels(library, ThreadPool(library, 1))
        return Sampler(group, vocab, CPU, own).sample(logits_SV[:, vocab.start : vocab.stop].clone(), batch)

    reference = sample(logits_SV, batch, None)
    for sampled in run_ranks(world_size, rank):
        assert (sampled.token_ids_S != reference.token_ids_S).sum() <= 1


def test_a_row_draws_the_same_alone_and_on_more_threads(library: KernelLibrary):
    logits_SV = random_logits(40, 4000)
    batch = mixed_draws(40, 4000, seed=2)
    threads = ThreadPool(library, 3)
    together = sample(logits_SV, batch, CpuRowKernels(library, threads)).token_ids_S
    threads.close()
    for row in (0, 13, 39):
        alone = draws(
            batch.uniform_P[row : row + 1],
            batch.temperature_P[row],
            batch.top_k_P[row],
            batch.top_p_P[row],
            batch.min_p_P[row],
        )
        one = CpuRowKernels(library, ThreadPool(library, 1))
        assert sample(logits_SV[row : row + 1], alone, one).token_ids_S[0] == together[row]


def test_greedy_rows_in_one_call_are_those_of_tier_0(library: KernelLibrary):
    logits_SV = random_logits(6, 300)
    logits_SV[1, 7], logits_SV[3] = NAN, -INF
    logits_SV[4, 20] = logits_SV[4, 90] = 50
    greedy = draws(np.empty(0))
    expected = Sampler(SoloGroup(), range(300), CPU).sample(logits_SV.clone(), greedy)
    sampler = GreedyInOneCall(CpuRowKernels(library, ThreadPool(library, 2)), Sampler(SoloGroup(), range(300), CPU))
    chosen = sampler.sample(logits_SV, greedy)
    assert chosen.token_ids_S.tolist() == expected.token_ids_S.tolist()
    assert chosen.is_failed_S.tolist() == expected.is_failed_S.tolist() == [False, True, False, True, False, False]


def test_rows_that_ask_for_more_than_the_most_likely_token_are_left_to_the_sampler(kernels: CpuRowKernels):
    logits_SV, batch = random_logits(5, 300), mixed_draws(5, 300, seed=3)
    expected = Sampler(SoloGroup(), range(300), CPU).sample(logits_SV.clone(), batch)
    sampler = GreedyInOneCall(kernels, Sampler(SoloGroup(), range(300), CPU))
    assert sampler.sample(logits_SV, batch).token_ids_S.tolist() == expected.token_ids_S.tolist()
