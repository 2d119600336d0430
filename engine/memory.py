"""How a rank's memory is divided, computed from the configuration alone: weights, activations, KV blocks.

Per rank, with b bytes per activation, T = max_step_tokens, R = max_running, L = longest context, C = max_prefill_chunk,
D hidden size, F, H, K, V this rank's feed-forward columns, query heads, KV heads and vocabulary rows, E head dim:

    weights      of the rank's shard, each matrix in the format it is kept in (parallel/formats/sizes.py)
    block        2 * layers * block_size * K * (E * bytes of the KV dtype, + 4 for int8's scale)
    activations  one layer at its peak, b * T * (3 D + max(2 H E + 2 K E, 3 F)) + 4 * T * D for the norm in float32
                 + attention of one row, b * (2 L H E + C L): gathered keys and values, and the mask
                 + sampling, 3 * 4 * R * V: float32 logits, their edited copy, their probabilities
    reserved     GPU only: collective buffers, matrix workspaces, recorded steps

Block ids are the same on every rank, so every rank has the same number of blocks: the one with the least room decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from core.errors import DoesNotFit, InvalidConfig
from core.sizes import show_bytes
from engine.config import EngineConfig, SchedulerConfig
from parallel.checkpoint.tensors import TensorInfo
from parallel.cpu.limits import cpu_obstacle
from parallel.formats.sizes import DTYPE_BYTES, Holding, weight_bytes
from parallel.models.spec import ModelSpec
from parallel.rank.messages import Joined
from parallel.sharding import RankShard, ShardPlan

GPU_RESERVED_BYTES = 1536 * 2**20
"""NCCL buffers, cuBLAS workspaces, allocator fragments; graphs of some 40 batch sizes and the activations they share.
Not measured yet: `benchmarks/gpu` says what recording takes."""
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
    """Of activations, and of weights that are not quantised."""
    kv_dtype: str
    max_model_len: int
    ranks: tuple[RankMemory, ...]
    reason: str
    """What decided the number of blocks, and the longest context if that was reduced."""

    @classmethod
    def of(
        cls,
        config: EngineConfig,
        spec: ModelSpec,
        tensors: Mapping[str, TensorInfo],
        shard_plan: ShardPlan,
        devices: Sequence[Joined],
    ) -> "MemoryPlan":
        """Return the division; `tensors` are the checkpoint's.

        Raises DoesNotFit with the numbers, InvalidConfig for a max_model_len over the model's and for formats that a
        rank's device has not. An explicit max_model_len is a promise: KV blocks that cannot hold one such context are
        refused. The default is reduced to what the blocks hold.
        """
        _check_formats(config, devices)
        limit = longest_context(config, spec)
        dtype = choose_dtype(config, spec, devices)
        kv_dtype = dtype if config.cache.dtype == "auto" else config.cache.dtype
        sizes = _Sizes(config, spec, tensors, dtype, kv_dtype, limit)
        ranks = tuple(
            sizes.of_rank(shard, joined, devices) for shard, joined in zip(shard_plan.ranks, devices, strict=True)
        )
        for rank in ranks:
            _check_weights_fit(rank)
        capacity = min((_capacity(config, rank, limit) for rank in ranks), key=lambda capacity: capacity.num_blocks)
        num_tokens = capacity.num_blocks * config.cache.block_size
        _check_holds(capacity, config, num_tokens, limit)
        reason = capacity.reason
        if num_tokens < limit:
            reason += f"; max_model_len is {num_tokens} instead of the model's {limit}, because the blocks hold no more"
        max_model_len = min(limit, num_tokens)
        return cls(capacity.num_blocks, config.cache.block_size, dtype, kv_dtype, max_model_len, ranks, reason)

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
            f"in {self.kv_dtype}: {self.reason}. {shares}."
        )


def choose_dtype(config: EngineConfig, spec: ModelSpec, devices: Sequence[Joined]) -> str:
    """Return what the model runs in: as configured, or for `auto` bfloat16 unless a CPU runs a float32 checkpoint.

    What is to be quantised is in bfloat16 for the rest.
    """
    if config.model.dtype != "auto":
        return config.model.dtype
    is_on_cpu = any(joined.device == "cpu" for joined in devices)
    is_quantised = config.model.quantization not in ("auto", "none")
    return "float32" if is_on_cpu and spec.dtype == "float32" and not is_quantised else "bfloat16"


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


def _check_formats(config: EngineConfig, devices: Sequence[Joined]) -> None:
    """Raise InvalidConfig if a rank's device does not have what is asked for."""
    for joined in devices:
        if config.model.quantization == "fp8" and joined.fp8_obstacle:
            raise InvalidConfig(
                f"model.quantization=fp8 cannot be had on rank {joined.rank}: {joined.fp8_obstacle}; "
                "use int8, auto or none"
            )


@dataclass(frozen=True)
class _Sizes:
    """What a rank's share of the memory depends on, but for the rank."""

    config: EngineConfig
    spec: ModelSpec
    tensors: Mapping[str, TensorInfo]
    dtype: str
    kv_dtype: str
    longest_context: int

    def of_rank(self, shard: RankShard, joined: Joined, devices: Sequence[Joined]) -> RankMemory:
        """Return what one of `devices` holds."""
        holding = Holding.of(self._tier(joined), joined.device, self.dtype)
        return RankMemory(
            rank=joined.rank,
            device=joined.device,
            budget_bytes=_budget_bytes(self.config, joined, devices),
            weight_bytes=weight_bytes(self.spec, shard, self.tensors, self.config.model.quantization, holding),
            activation_bytes=_activation_bytes(
                self.config.scheduler, self.spec, shard, holding.activation_bytes, self.longest_context
            ),
            block_bytes=self._block_bytes(shard),
        )

    def _tier(self, joined: Joined) -> str:
        block_size = self.config.cache.block_size
        is_slow = joined.tier == "cpu" and cpu_obstacle(self.dtype, self.kv_dtype, self.spec.head_dim, block_size)
        return "torch" if is_slow else joined.tier

    def _block_bytes(self, shard: RankShard) -> int:
        num_heads = 2 * self.spec.num_layers * self.config.cache.block_size * len(shard.kv_heads)
        scale_bytes = 4 if self.kv_dtype == "int8" else 0
        return num_heads * (self.spec.head_dim * DTYPE_BYTES[self.kv_dtype] + scale_bytes)


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
    tokens, hidden = scheduler.step_tokens, spec.hidden_size
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
            "(parallel.tensor_parallel_size), model.quantization=int8, or lower scheduler.max_step_tokens"
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
