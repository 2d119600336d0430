"""Tokens chosen by Triton kernels against tier 0's sampler: the same rows, the same random numbers, the same tokens."""

import numpy as np
import pytest
import torch
from torch import Tensor

from parallel.cuda.choose import RowSampling
from parallel.cuda.ops import CudaOps
from parallel.cuda.random import uniforms
from parallel.cuda.row_kernels import CudaRowKernels
from parallel.cuda.sampler import Chosen, DeviceSampler
from parallel.groups.solo import SoloGroup
from parallel.sampling.params import SamplingParams
from parallel.sampling.random import uniforms as host_uniforms
from parallel.sampling.sampler import Sampler
from tests.support.fake_tp_group import FakeGroup, run_ranks
from tests.support.kernel_device import DEVICE
from tests.support.sharded_sampling import BatchOf, uneven_split

WIDTH = 300
SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 1e-3},
    {"top_k": 1},
    {"top_k": 7, "temperature": 1.5},
    {"top_k": WIDTH + 5, "top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"min_p": 0.05, "temperature": 2.0},
    {"top_k": 20, "top_p": 0.7, "min_p": 0.02, "temperature": 1.3},
]


def some_logits(kind: str, num_rows: int) -> Tensor:
    logits_SV = torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(5)) * 3
    if kind == "whole numbers":
        return logits_SV.round()
    if kind == "few allowed":
        logits_SV[:, 4:] = -torch.inf
    return logits_SV.bfloat16().float() if kind == "bfloat16" else logits_SV


def requests_of(samplings: list[dict]) -> list:
    params = [SamplingParams(max_tokens=9, seed=seed, **given) for seed, given in enumerate(samplings)]
    return [(given, list(range(7 * row + 1)), 1) for row, given in enumerate(params)]


def by_tier_0(logits_SV: Tensor, samplings: list[dict]) -> list[int]:
    sampler = Sampler(SoloGroup(), range(WIDTH), torch.device("cpu"))
    return sampler.sample(logits_SV.clone(), BatchOf(requests_of(samplings))(range(WIDTH))).token_ids_S.tolist()


def rows_of(samplings: list[dict]) -> RowSampling:
    requests = requests_of(samplings)
    seeds = np.array([params.seed for params, _, _ in requests], np.uint64)
    positions = np.array([len(token_ids) for _, token_ids, _ in requests])
    settings = [[params.temperature, params.top_k or 2**62, params.top_p, params.min_p] for params, _, _ in requests]
    temperature, top_k, top_p, min_p = zip(*settings, strict=True)
    return RowSampling(
        torch.tensor(temperature, dtype=torch.float32, device=DEVICE),
        torch.from_numpy(host_uniforms(seeds, positions)).to(DEVICE),
        torch.tensor(top_k, device=DEVICE),
        torch.tensor(top_p, dtype=torch.float64, device=DEVICE),
        torch.tensor(min_p, dtype=torch.float64, device=DEVICE),
    )


def on_ranks(logits_SV: Tensor, samplings: list[dict], world_size: int) -> Chosen:
    shards = uneven_split(WIDTH, world_size)

    def rank(group: FakeGroup) -> Chosen:
        vocab = shards[group.rank]
        logits = logits_SV[:, vocab.start : vocab.stop].contiguous().to(DEVICE)
        return DeviceSampler(group, vocab, DEVICE).sample(logits, rows_of(samplings), has_filters=True)

    results = run_ranks(world_size, rank)
    for other in results[1:]:
        assert torch.equal(other.token_id_S, results[0].token_id_S)
        assert torch.equal(other.is_failed_S, results[0].is_failed_S)
    return results[0]


def test_the_device_draws_the_hosts_numbers_to_the_last_bit():
    seeds = np.array([0, 1, 2**63 - 1, 12345678901234567], np.uint64)
    positions = np.array([0, 5, 131072, 7])
    tensors = (torch.from_numpy(values).to(DEVICE) for values in (seeds.view(np.int64), positions))
    np.testing.assert_array_equal(uniforms(*tensors).cpu().numpy(), host_uniforms(seeds, positions))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "whole numbers", "few allowed"])
def test_every_kind_of_row_gets_tier_0s_token(kind):
    logits_SV = some_logits(kind, len(SAMPLINGS))
    sampler = DeviceSampler(SoloGroup(), range(WIDTH), DEVICE)
    chosen = sampler.sample(logits_SV.to(DEVICE), rows_of(SAMPLINGS), has_filters=True)
    assert chosen.token_id_S.tolist() == by_tier_0(logits_SV, SAMPLINGS)
    assert not chosen.is_failed_S.any()


def test_rows_without_filters_need_no_search():
    samplings = [{"temperature": 0.0}, {"temperature": 0.7}] * 3
    logits_SV = some_logits("float32", len(samplings))
    sampler = DeviceSampler(SoloGroup(), range(WIDTH), DEVICE)
    chosen = sampler.sample(logits_SV.to(DEVICE), rows_of(samplings), has_filters=False)
    assert chosen.token_id_S.tolist() == by_tier_0(logits_SV, samplings)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_share_the_vocabulary_agree_on_tier_0s_token(world_size):
    samplings = SAMPLINGS[:2] + SAMPLINGS[6:]
    logits_SV = some_logits("bfloat16", len(samplings))
    # A rank on which nothing is allowed.
    logits_SV[0, : WIDTH // 2] = -torch.inf
    assert on_ranks(logits_SV, samplings, world_size).token_id_S.tolist() == by_tier_0(logits_SV, samplings)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_broken_row_fails_alone(world_size):
    samplings = [{"temperature": 0.0}, {"temperature": 1.0}, {"top_p": 0.9}, {"temperature": 1.0}] * 2
    logits_SV = some_logits("float32", len(samplings))
    expected = by_tier_0(logits_SV, samplings)
    logits_SV[1, 9], logits_SV[4, 200], logits_SV[6] = torch.nan, torch.inf, -torch.inf
    chosen = on_ranks(logits_SV, samplings, world_size)
    assert chosen.is_failed_S.tolist() == [row in (1, 4, 6) for row in range(8)]
    assert chosen.token_id_S.tolist() == [0 if row in (1, 4, 6) else expected[row] for row in range(8)]


def test_the_best_logit_is_the_first_of_equals_across_chunks():
    logits_SV = torch.zeros(3, 9000, device=DEVICE)
    logits_SV[0, [4100, 8999]] = 5.0
    logits_SV[1, 0] = -1.0
    logits_SV[2, 3] = torch.nan
    best = CudaOps(torch.float32, 1).best(logits_SV)
    assert best.index_S[:2].tolist() == [4100, 1]
    assert best.logit_S[:2].tolist() == [5.0, 0.0]
    assert best.is_sound_S.tolist() == [True, True, False]


def test_a_draw_over_several_chunks_equals_tier_0():
    samplings = [{"temperature": 2.0}] * 4
    logits_SV = torch.randn(4, 9000, generator=torch.Generator().manual_seed(0))
    batch = BatchOf(requests_of(samplings))(range(9000))
    sampled = [
        Sampler(SoloGroup(), range(9000), device, kernels).sample(logits_SV.to(device, copy=True), batch)
        for device, kernels in ((torch.device("cpu"), None), (DEVICE, CudaRowKernels()))
    ]
    assert sampled[0].token_ids_S.tolist() == sampled[1].token_ids_S.tolist()


def test_the_sampler_that_asks_the_host_takes_the_kernels_too():
    logits_SV = some_logits("bfloat16", len(SAMPLINGS))
    sampler = Sampler(SoloGroup(), range(WIDTH), DEVICE, CudaRowKernels())
    sampled = sampler.sample(logits_SV.to(DEVICE, copy=True), BatchOf(requests_of(SAMPLINGS))(range(WIDTH)))
    assert sampled.token_ids_S.tolist() == by_tier_0(logits_SV, SAMPLINGS)


def test_top_candidates_come_best_first_and_equals_by_index():
    logits_SV = torch.tensor([[1.0, 3.0, 2.0, 3.0, 0.0]], device=DEVICE)
    logits_SK, index_SK = CudaRowKernels().top(logits_SV, 3)
    assert index_SK.tolist() == [[1, 3, 2]]
    assert logits_SK.tolist() == [[3.0, 3.0, 2.0]]
