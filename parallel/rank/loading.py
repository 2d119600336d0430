"""From a Load message to a worker that has run a step. Weights outlive the group that they were loaded in."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from core.clock import Clock, MonotonicClock
from core.progress import Progress
from parallel.checkpoint.reader import open_checkpoint
from parallel.checkpoint.source import Locate, locate_checkpoint
from parallel.groups.base import TPGroup
from parallel.groups.rejoinable import RejoinableGroup
from parallel.kv_cache import KVCache
from parallel.layers.shard import Storage
from parallel.models.decoder import CausalLM
from parallel.models.loader import OnProgress, describe_weights, load_weights
from parallel.models.registry import build_model
from parallel.ops.choice import OpChoice
from parallel.rank.messages import Load, Loaded
from parallel.rank.rows import max_blocks_of_row
from parallel.rank.stepping import StepRunner
from parallel.rank.tier import StepLimits
from parallel.rank.tiers import Shape, choose_tier
from parallel.rank.worker import RankWorker
from parallel.sharding import ShardPlan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}

_REPORT_INTERVAL_S = 0.1
_CPU_WARM_UP_TOKENS = 32
"""On a CPU a warm-up starts threads and fills kernel caches, for which a short prompt is enough."""


class LoadedModel(NamedTuple):
    """This rank's part of a model, and what runs its steps."""

    model: CausalLM
    kv: KVCache
    runner: StepRunner
    choices: list[OpChoice]


class HeldWeights:
    """This rank's part of a model in its fastest form, without a KV cache: what a rank keeps when its group breaks."""

    def __init__(self, load: Load, path: Path, group: TPGroup, device: torch.device, on_progress: OnProgress) -> None:
        """Read the weights of the model at `path`. Raises as `load_rank` does."""
        checkpoint = open_checkpoint(path)
        spec = checkpoint.spec
        self.load = load
        self._device = device
        self._group = RejoinableGroup(group)
        self._shard = ShardPlan.of(spec, group.world_size).ranks[group.rank]
        self._tier = choose_tier(
            device, Shape(DTYPES[load.dtype], DTYPES[load.kv_dtype], spec.head_dim, load.block_size)
        )
        # On a GPU memory is taken at once, and plain matrices of a model to be quantised may be more than there is.
        storage = Storage(DTYPES[load.dtype], device, self._tier.ops, are_matrices_late=device.type != "cpu")
        self._model = build_model(spec, self._shard, self._group, storage)
        plain_because = load_weights(self._model, checkpoint, load.quantization, on_progress)
        self._choice = describe_weights(self._model, self._tier.ops.name, plain_because)

    def fits(self, load: Load, group: TPGroup) -> bool:
        """Whether loading would give these very weights."""
        return load == self.load and (group.rank, group.world_size) == (self._group.rank, self._group.world_size)

    def in_group(self, group: TPGroup) -> LoadedModel:
        """Return the model with an empty KV cache, its sums going through `group` from now on. A collective.

        What an earlier call returned is of no use any more. Raises OutOfMemory, RankDied.
        """
        self._group.rejoin(group)
        load, model = self.load, self._model
        layout = self._tier.ops.kv_layout(
            load.block_size, len(self._shard.kv_heads), model.spec.head_dim, DTYPES[load.kv_dtype]
        )
        kv = KVCache(model.num_layers, load.num_blocks, layout, self._device)
        limits = StepLimits(load.max_rows, max_blocks_of_row(load.max_model_len, load.block_size))
        runner, choices = self._tier.runner(model, kv, group, limits)
        choices.append(self._choice)
        if group.choice is not None:
            choices.append(group.choice)
        return LoadedModel(model, kv, runner, choices)


class LoadedRank(NamedTuple):
    """A worker that is ready for plans, what to tell the leader about it, and what to keep for the next group."""

    worker: RankWorker
    loaded: Loaded
    weights: HeldWeights


def load_rank(
    load: Load,
    group: TPGroup,
    device: torch.device,
    on_progress: Callable[[Progress], None],
    held: HeldWeights | None = None,
    locate: Locate = locate_checkpoint,
) -> LoadedRank:
    """Have this rank's weights, an empty KV cache, and a prefill and a decode step done. A collective.

    The weights are read, unless `held` are those; `locate` finds, or fetches, the model's files. Raises StartupError
    for checkpoints that cannot be served, OutOfMemory, RankDied.
    """
    started_s = time.monotonic()
    report = ProgressReport(group.rank, on_progress, MonotonicClock())
    report("load", 0, 1, "")
    if held is None or not held.fits(load, group):
        path = locate(load.model, load.revision, partial(report, "fetch")).path
        held = HeldWeights(load, path, group, device, partial(report, "load"))
    model, kv, runner, choices = held.in_group(group)
    worker = RankWorker(
        model,
        runner,
        kv,
        max_rows=load.max_rows,
        max_model_len=load.max_model_len,
        block_size=load.block_size,
    )
    report("warmup", 0, 1, "")
    worker.warm_up(_warm_up_tokens(load, device))
    report("ready", 1, 1, "")
    load_time_s = time.monotonic() - started_s
    return LoadedRank(worker, Loaded(group.rank, model.weight_bytes, kv.num_bytes, load_time_s, choices), held)


def load_model(load: Load, group: TPGroup, device: torch.device, on_progress: OnProgress) -> LoadedModel:
    """Read this rank's weights and allocate its KV cache. A collective. Raises as `load_rank` does."""
    path = locate_checkpoint(load.model, load.revision, on_progress).path
    return HeldWeights(load, path, group, device, on_progress).in_group(group)


def _warm_up_tokens(load: Load, device: torch.device) -> int:
    most = _CPU_WARM_UP_TOKENS if device.type == "cpu" else load.max_step_tokens
    return max(1, min(most, load.max_step_tokens, load.max_model_len - 1, load.num_blocks * load.block_size - 1))


class ProgressReport:
    """Passes progress on: at most ten times a second, and always the last of a phase."""

    def __init__(self, rank: int, on_progress: Callable[[Progress], None], clock: Clock) -> None:
        self._rank = rank
        self._on_progress = on_progress
        self._clock = clock
        self._phase = ""
        self._next_s = 0.0

    def __call__(self, phase: str, done: int, total: int, detail: str) -> None:
        """Take one report; forward it, or not."""
        now_s = self._clock.now_s()
        is_due = phase != self._phase or done >= total or now_s >= self._next_s
        if is_due:
            self._phase = phase
            self._next_s = now_s + _REPORT_INTERVAL_S
            self._on_progress(Progress(self._rank, phase, done, total, detail))
