"""A rank with a model of random weights, driven by step plans: no files, no leader, no sockets."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.gpu.rig import Rig
from parallel.cuda.row_kernels import CudaRowKernels
from parallel.cuda.runner import GraphRunner, Samplers
from parallel.cuda.sampler import DeviceSampler
from parallel.formats.quantise import quantise_fp8
from parallel.groups.solo import SoloGroup
from parallel.kv_cache import KVCache
from parallel.layers.linear import Linear
from parallel.layers.shard import Storage
from parallel.layers.vocab import VocabParallelEmbedding, VocabParallelHead
from parallel.models.decoder import CausalLM
from parallel.models.registry import build_model
from parallel.models.spec import ModelSpec
from parallel.plan import StepPlan, StepResult
from parallel.rank.rows import max_blocks_of_row
from parallel.rank.tier import StepLimits
from parallel.rank.worker import LaunchedStep, RankWorker
from parallel.sampling.sampler import Sampler
from parallel.sharding import ShardPlan

BLOCK_SIZE = 16


class Settings(NamedTuple):
    """What of a model is varied."""

    weight_format: str
    """bf16 or fp8."""
    kv_format: str
    """bf16 or int8."""
    max_rows: int
    max_model_len: int
    num_blocks: int


class RandomRank(NamedTuple):
    """A worker and what runs under it."""

    worker: RankWorker
    runner: GraphRunner
    model: CausalLM
    kv: KVCache


def random_rank(rig: Rig, spec: ModelSpec, settings: Settings) -> RandomRank:
    """Return a rank that is ready for plans; records its decode steps, which takes a while."""
    ops, group = rig.ops(), SoloGroup()
    model = build_model(spec, ShardPlan.of(spec, 1).ranks[0], group, Storage(rig.dtype, rig.device, ops))
    _fill(model, settings.weight_format)
    kv_dtype = torch.int8 if settings.kv_format == "int8" else rig.dtype
    kv = KVCache(
        spec.num_layers,
        settings.num_blocks,
        ops.kv_layout(BLOCK_SIZE, spec.num_kv_heads, spec.head_dim, kv_dtype),
        rig.device,
    )
    for layer in kv.layers:
        _fill_cache((layer.key, layer.value), (layer.key_scale, layer.value_scale))
    samplers = Samplers(
        DeviceSampler(group, model.vocab, rig.device), Sampler(group, model.vocab, rig.device, CudaRowKernels())
    )
    limits = StepLimits(settings.max_rows, max_blocks_of_row(settings.max_model_len, BLOCK_SIZE))
    runner = GraphRunner(model, kv, samplers, rig.on, limits)
    worker = RankWorker(
        model, runner, kv, max_rows=settings.max_rows, max_model_len=settings.max_model_len, block_size=BLOCK_SIZE
    )
    return RandomRank(worker, runner, model, kv)


def run_ahead(worker: RankWorker, plans: Iterable[StepPlan]) -> list[StepResult]:
    """Run the plans as a rank does when its leader plans ahead: a step is launched before the last one is awaited."""
    launched: deque[LaunchedStep] = deque()
    results: list[StepResult] = []
    for plan in plans:
        launched.append(worker.launch(plan))
        if len(launched) > 1:
            results.append(worker.finish(launched.popleft()))
    results.extend(worker.finish(step) for step in launched)
    return results


@torch.no_grad()
def _fill(model: CausalLM, weight_format: str) -> None:
    """Draw every matrix and have its layer take it; norms are ones."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1)
    for layer in model.modules():
        match layer:
            case VocabParallelEmbedding(weight=nn.Parameter() as weight):
                weight.normal_(std=0.02)
                is_tied = model.spec.tie_word_embeddings
                if is_tied:
                    model.lm_head.pack(weight.detach())
                layer.pack(weight.detach(), model.lm_head.matmul if is_tied else None)
            case Linear(weight=nn.Parameter() as weight):
                weight.normal_(std=0.02)
                is_narrow = weight_format == "fp8" and not isinstance(layer, VocabParallelHead)
                layer.pack(quantise_fp8(weight.detach()) if is_narrow else weight.detach())
            case _:
                pass


def _fill_cache(codes: tuple[torch.Tensor, ...], scales: tuple[torch.Tensor | None, ...]) -> None:
    """Draw what is cached: zeros would be read faster than data are, because they cost less power."""
    for tensor in codes:
        if tensor.dtype == torch.int8:
            tensor.random_(-127, 128)
        else:
            tensor.normal_()
    for scale in scales:
        if scale is not None:
            scale.fill_(0.01)
