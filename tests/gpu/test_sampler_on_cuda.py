"""The sampler chooses on a GPU what it chooses on a CPU."""

import pytest
import torch

from parallel.groups.solo import SoloGroup
from parallel.sampling.params import SamplingParams
from parallel.sampling.sampler import Sampler
from tests.support.sharded_sampling import BatchOf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SAMPLINGS = [
    SamplingParams(max_tokens=9, seed=1, temperature=0, logprobs=3),
    SamplingParams(max_tokens=9, seed=2, temperature=0.8),
    SamplingParams(max_tokens=9, seed=3, top_k=40, top_p=0.9),
    SamplingParams(max_tokens=9, seed=4, min_p=0.05, repetition_penalty=1.2, logit_bias={5: 2.0}),
    SamplingParams(max_tokens=9, seed=5, temperature=1.5, top_p=0.99, min_tokens=4, stop_token_ids=(3,)),
]


def test_a_mixed_batch_gives_the_tokens_it_gives_on_a_cpu():
    requests = [(params, list(range(10)), 6) for params in SAMPLINGS] * 10
    logits = torch.randn(len(requests), 50_000, generator=torch.Generator().manual_seed(0)) * 3
    vocab = range(50_000)
    results = [
        Sampler(SoloGroup(), vocab, torch.device(device)).sample(logits.to(device, copy=True), BatchOf(requests)(vocab))
        for device in ("cpu", "cuda")
    ]
    # exp differs in its last bit, which may move a token whose uniform number lies on a boundary.
    assert (results[0].token_ids_S == results[1].token_ids_S).mean() > 0.95
    assert results[0].logprobs[0].top_ids == results[1].logprobs[0].top_ids
