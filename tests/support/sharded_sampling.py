"""Runs the sampler over a vocabulary that is split unevenly over fake ranks, and checks that the ranks agree."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from parallel.sampling.params import SamplingParams
from parallel.sampling.rows import SampleBatch, SamplingRows
from parallel.sampling.sampler import Sampled, Sampler
from tests.support.fake_tp_group import FakeGroup, run_ranks

CPU = torch.device("cpu")


def uneven_split(width: int, world_size: int) -> list[range]:
    """Return ranges of different lengths over `width`."""
    cuts = [0, *sorted({max(1, width * part // (world_size + 1)) for part in range(1, world_size)}), width]
    assert len(cuts) == world_size + 1
    return [range(start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]


def sample_batch(logits_SV: Tensor, batch_of: Callable[[range], SampleBatch], world_size: int) -> Sampled:
    """Sample from whole logits on `world_size` ranks."""
    shards = uneven_split(logits_SV.shape[1], world_size)

    def rank(group: FakeGroup) -> Sampled:
        vocab = shards[group.rank]
        sampler = Sampler(group, vocab, CPU)
        return sampler.sample(logits_SV[:, vocab.start : vocab.stop].clone(), batch_of(vocab))

    results = run_ranks(world_size, rank)
    for other in results[1:]:
        np.testing.assert_array_equal(other.token_ids_S, results[0].token_ids_S)
        assert other.logprobs == results[0].logprobs
    return results[0]


class BatchOf:
    """Builds each rank's SampleBatch from requests: (params, token ids, number of prompt tokens)."""

    def __init__(
        self,
        requests: Sequence[tuple[SamplingParams, Sequence[int], int]],
        eos_token_ids: Sequence[int] = (),
        uniforms: Sequence[float] | None = None,
    ) -> None:
        self._requests = requests
        self._eos_token_ids = eos_token_ids
        self._uniforms = uniforms

    def __call__(self, vocab: range) -> SampleBatch:
        rows = SamplingRows(len(self._requests), vocab, self._eos_token_ids)
        for row, (params, token_ids, num_prompt_tokens) in enumerate(self._requests):
            rows.start(row, params, np.array(token_ids, np.int64), num_prompt_tokens)
        lengths = np.array([len(token_ids) for _, token_ids, _ in self._requests])
        batch = rows.select(np.arange(len(self._requests)), lengths)
        if self._uniforms is not None:
            batch.uniform_P[:] = self._uniforms
        return batch


def sample(
    logits_SV: Tensor, requests: Sequence[tuple[SamplingParams, Sequence[int], int]], world_size: int = 1
) -> Sampled:
    """Sample one token for each request."""
    return sample_batch(logits_SV, BatchOf(requests), world_size)


def frequencies(logits_V: Tensor, params: SamplingParams, num_points: int, world_size: int = 1) -> np.ndarray:
    """Return how often uniform numbers on an even grid draw each token: its probability, within 2 / num_points."""
    requests = [(params, [0], 1)] * num_points
    uniforms = (np.arange(num_points) + 0.5) / num_points
    logits_SV = logits_V.expand(num_points, -1).contiguous()
    sampled = sample_batch(logits_SV, BatchOf(requests, uniforms=uniforms), world_size)
    return np.bincount(sampled.token_ids_S, minlength=len(logits_V)) / num_points
