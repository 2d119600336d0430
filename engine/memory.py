"""How a rank's memory is divided, computed from the configuration alone: weights, activations, KV blocks.

Per rank, with b bytes per number, T = max_step_tokens, R = max_running, L = longest context, C = max_prefill_chunk,
D hidden size, F, H, K, V this rank's feed-forward columns, query heads, KV heads and vocabulary rows, E head dim:

    weights      b * parameters of the rank's shard
    block        2 * layers * block_size * K * E * b
    activations  one layer at its peak, b * T * (3 D + max(2 H E + 2 K E, 3 F)) + 4 * T * D for the norm in float32
                 + attention of one row, b * (2 L H E + C L): gathered keys and values, and the mask
                 + sampling, 3 * 4 * R * V: float32 logits, their edited copy, their probabilities
    reserved     GPU only: collective buffers and matrix workspaces

Block ids are the same on every rank, so every rank has the same number of blocks: the one with the least room decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from core.errors import DoesNotFit, InvalidConfig
from engine.config import EngineConfig, SchedulerConfig
from parallel.models.spec import ModelSpec
from parallel.rank.messages import Joined
from parallel.sharding import RankShard, ShardPlan

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GPU_RESERVED_BYTES = 768 * 2**20
"""NCCL buffers, cuBLAS workspaces, allocator fragments."""
CPU_KV_SHARE = 0.25
"""Most of its share of a node's free memory that a rank takes for KV blocks unasked: a CPU host has other tenants."""


@dataclass(frozen=True)
class RankMemory:
    """One rank's division."""

    rank: int
    device: str
    budget_bytes: int
    """What weights, activations and KV blocks may take together."""
    weight_bytes: int
    activation_bytes: int
    block_bytes: int
    """Keys and values of all layers for one block."""

    @property
    def room_bytes(self) -> int:
        """What weights and activations leave; negative if they do not fit themselves."""
        return self.budget_bytes - self.weight_bytes - self.activation_bytes


class _Capacity(NamedTuple):
    num_blocks: int
    reason: str
    rank: RankMemory


@dataclass(frozen=True)
class MemoryPlan:
    """How many KV blocks there are, and why."""

    num_blocks: int
    block_size: int
    dtype: str
    """Of weights, activations and KV."""
    max_model_len: int
    ranks: tuple[RankMemory, ...]
    reason: str
    """What decided the number of blocks, and the longest context if that was reduced."""

    @classmethod
    def of(
        cls, config: EngineConfig, spec: ModelSpec, shard_plan: ShardPlan, devices: Sequence[Joined]
    ) -> "MemoryPlan":
        """Return the division. Raises DoesNotFit with the numbers, InvalidConfig for a max_model_len over the model's.

        An explicit max_model_len is a promise: KV blocks that cannot hold one such context are refused. The default is
        reduced to what the blocks hold.
        """
        limit = longest_context(config, spec)
        dtype = choose_dtype(config, spec, devices)
        ranks = tuple(
            _rank_memory(config, spec, shard, joined, devices, DTYPE_BYTES[dtype], limit)
            for shard, joined in zip(shard_plan.ranks, devices, strict=True)
        )
        for rank in ranks:
            _check_weights_fit(rank)
        capacity = min((_capacity(config, rank, limit) for rank in ranks), key=lambda capacity: capacity.num_blocks)
        num_tokens = capacity.num_blocks * config.cache.block_size
        _check_holds(capacity, config, num_tokens, limit)
        reason = capacity.reason
        if num_tokens < limit:
            reason += f"; max_model_len is {num_tokens} instead of the model's {limit}, because the blocks hold no more"
        return cls(capacity.num_blocks, config.cache.block_size, dtype, min(limit, num_tokens), ranks, reason)

    def explain(self) -> str:
        """Return one paragraph for the log: each rank's numbers and what decided."""
        shares = "; ".join(
            f"rank {rank.rank} ({rank.device}) may use {show_bytes(rank.budget_bytes)}: "
            f"weights {show_bytes(rank.weight_bytes)}, activations {show_bytes(rank.activation_bytes)}, "
            f"KV {show_bytes(self.num_blocks * rank.block_bytes)}"
            for rank in self.ranks
        )
        return (
            f"{self.num_blocks} KV blocks of {self.block_size} tokens hold {self.num_blocks * self.block_size} tokens "
            f"in {self.dtype}: {self.reason}. {shares}."
        )


def choose_dtype(config: EngineConfig, spec: ModelSpec, devices: Sequence[Joined]) -> str:
    """Return what the model runs in: as configured, or for `auto` bfloat16 unless a CPU runs a float32 checkpoint."""
    if config.model.dtype != "auto":
        return config.model.dtype
    is_on_cpu = any(joined.device == "cpu" for joined in devices)
    return "float32" if is_on_cpu and spec.dtype == "float32" else "bfloat16"


def show_bytes(count: int) -> str:
    """Return a size for people: `1.5 GiB`, `64 MiB`."""
    return f"{count / 2**30:.2f} GiB" if abs(count) >= 2**30 else f"{count / 2**20:.1f} MiB"


def longest_context(config: EngineConfig, spec: ModelSpec) -> int:
    """Return the longest context in tokens that is asked for, or else that the model knows. Raises InvalidConfig."""
    asked = config.model.max_model_len
    if asked is not None and asked > spec.max_context:
        raise InvalidConfig(
            f"model.max_model_len={asked} is over the model's {spec.max_context} "
            f"(max_position_embeddings={spec.max_position_embeddings}, sliding_window={spec.sliding_window}); "
            f"use at most {spec.max_context}"
        )
    return asked or spec.max_context


def _rank_memory(
    config: EngineConfig,
    spec: ModelSpec,
    shard: RankShard,
    joined: Joined,
    devices: Sequence[Joined],
    dtype_bytes: int,
    longest_context: int,
) -> RankMemory:
    return RankMemory(
        rank=joined.rank,
        device=joined.device,
        budget_bytes=_budget_bytes(config, joined, devices),
        weight_bytes=dtype_bytes * shard.num_parameters(spec),
        activation_bytes=_activation_bytes(config.scheduler, spec, shard, dtype_bytes, longest_context),
        block_bytes=2 * spec.num_layers * config.cache.block_size * len(shard.kv_heads) * spec.head_dim * dtype_bytes,
    )


def _budget_bytes(config: EngineConfig, joined: Joined, devices: Sequence[Joined]) -> int:
    if joined.device != "cpu":
        share = int(config.cache.gpu_memory_fraction * joined.total_memory_bytes)
        return min(share, joined.free_memory_bytes) - GPU_RESERVED_BYTES
    # Ranks of one node report the same memory, each at another moment.
    neighbours = [other for other in devices if other.device == "cpu" and other.node == joined.node]
    return min(other.free_memory_bytes for other in neighbours) // len(neighbours)


def _activation_bytes(
    scheduler: SchedulerConfig, spec: ModelSpec, shard: RankShard, dtype_bytes: int, longest_context: int
) -> int:
    tokens, hidden = scheduler.max_step_tokens, spec.hidden_size
    query_width = len(shard.query_heads) * spec.head_dim
    kv_width = len(shard.kv_heads) * spec.head_dim
    widest = 3 * hidden + max(2 * query_width + 2 * kv_width, 3 * len(shard.ffn))
    layer = tokens * (dtype_bytes * widest + 4 * hidden)
    attention = dtype_bytes * longest_context * (2 * query_width + scheduler.max_prefill_chunk)
    sampling = 3 * 4 * scheduler.max_running * len(shard.vocab)
    return layer + attention + sampling


def _check_weights_fit(rank: RankMemory) -> None:
    if rank.room_bytes <= 0:
        raise DoesNotFit(
            f"rank {rank.rank} ({rank.device}) may use {show_bytes(rank.budget_bytes)}, but its weights need "
            f"{show_bytes(rank.weight_bytes)} and activations {show_bytes(rank.activation_bytes)}; use more ranks "
            "(parallel.tensor_parallel_size), a smaller model.dtype, or lower scheduler.max_step_tokens"
        )


def _capacity(config: EngineConfig, rank: RankMemory, longest_context: int) -> _Capacity:
    """Return how many blocks one rank has room for, and why. Raises DoesNotFit if an explicit size has no room."""
    if config.cache.memory != "auto":
        return _explicit_capacity(config.cache.memory, rank)
    everything = _Capacity(
        rank.room_bytes // rank.block_bytes, f"all that weights and activations leave on rank {rank.rank}", rank
    )
    if rank.device != "cpu":
        return everything
    share = _Capacity(
        int(CPU_KV_SHARE * rank.budget_bytes) // rank.block_bytes,
        f"a quarter of the memory that rank {rank.rank} may use",
        rank,
    )
    enough = _Capacity(
        -(-longest_context // config.cache.block_size) * config.scheduler.max_running,
        f"enough for max_running={config.scheduler.max_running} contexts of {longest_context} tokens",
        rank,
    )
    return min(everything, share, enough, key=lambda capacity: capacity.num_blocks)


def _explicit_capacity(asked_bytes: int, rank: RankMemory) -> _Capacity:
    if asked_bytes > rank.room_bytes:
        raise DoesNotFit(
            f"cache.memory={show_bytes(asked_bytes)} does not fit on rank {rank.rank} ({rank.device}): of "
            f"{show_bytes(rank.budget_bytes)}, weights take {show_bytes(rank.weight_bytes)} and activations "
            f"{show_bytes(rank.activation_bytes)}, which leaves {show_bytes(rank.room_bytes)}; lower cache.memory"
        )
    return _Capacity(asked_bytes // rank.block_bytes, f"cache.memory is {show_bytes(asked_bytes)} per rank", rank)


def _check_holds(capacity: _Capacity, config: EngineConfig, num_tokens: int, longest_context: int) -> None:
    """Raise DoesNotFit if the blocks hold nothing, or less than the context that was promised."""
    if num_tokens >= longest_context or (num_tokens > 0 and config.model.max_model_len is None):
        return
    needed = -(-longest_context // config.cache.block_size) * capacity.rank.block_bytes
    raise DoesNotFit(
        f"KV blocks of rank {capacity.rank.rank} hold {num_tokens} tokens ({capacity.reason}), and one context of "
        f"{longest_context} tokens needs {show_bytes(needed)}; raise cache.memory, lower model.max_model_len or use "
        "more ranks (parallel.tensor_parallel_size)"
    )
