"""A random model small enough for unit tests, on one rank, and what it says without cache, batch or plan."""

from collections.abc import Sequence

import torch

from parallel.attention.base import AttentionBatch, StepContext
from parallel.groups.base import TPGroup
from parallel.groups.solo import SoloGroup
from parallel.kv_cache import KVCache
from parallel.models.decoder import CausalLM
from parallel.models.registry import build_model
from parallel.ops.torch_ops import TorchOps
from parallel.rank.forward import OpByOp
from parallel.rank.stepping import DirectRunner
from parallel.rank.worker import RankWorker
from parallel.sampling.sampler import Sampler
from parallel.sharding import ShardPlan
from tests.support.storages import torch_storage
from tests.support.tiny_specs import a_spec

CPU = torch.device("cpu")
BLOCK_SIZE = 8
MAX_MODEL_LEN = 120
NUM_BLOCKS = 64
MAX_ROWS = 6


def tiny_model(seed: int = 0, group: TPGroup | None = None) -> CausalLM:
    """Return a two-layer Llama with random weights and a vocabulary of 64."""
    spec = a_spec()
    group = group or SoloGroup()
    storage = torch_storage()
    model = build_model(spec, ShardPlan.of(spec, group.world_size).ranks[group.rank], group, storage)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def tiny_worker(model: CausalLM, num_blocks: int = NUM_BLOCKS) -> RankWorker:
    """Return a worker of `model` with an empty cache."""
    kv = empty_cache(model, num_blocks, BLOCK_SIZE)
    return RankWorker(
        model,
        DirectRunner(OpByOp(model, kv, CPU), solo_sampler(model)),
        kv,
        max_rows=MAX_ROWS,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
    )


@torch.inference_mode()
def whole_logits(model: CausalLM, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the logits of the last position, computed in one piece in a cache of its own."""
    num_tokens = len(token_ids)
    kv = empty_cache(model, 1, num_tokens)
    positions_T = torch.arange(num_tokens)
    batch = AttentionBatch((num_tokens,), (num_tokens,), positions_T, torch.zeros((1, 1), dtype=torch.int64))
    context = StepContext(batch, kv.layers)
    return model.logits(model(torch.tensor(token_ids), positions_T, context)[-1:])[0]


def greedy_tokens(model: CausalLM, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Return the most likely continuation, the whole text computed anew for every token."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(whole_logits(model, tokens).argmax()))
    return tokens[len(prompt) :]


def empty_cache(model: CausalLM, num_blocks: int, block_size: int) -> KVCache:
    """Return a KV cache for all heads of `model`."""
    spec = model.spec
    layout = TorchOps(torch.float32).kv_layout(block_size, spec.num_kv_heads, spec.head_dim, torch.float32)
    return KVCache(spec.num_layers, num_blocks, layout, CPU)


def solo_sampler(model: CausalLM) -> Sampler:
    """Return the sampler of a model on one rank."""
    return Sampler(SoloGroup(), model.vocab, CPU)
