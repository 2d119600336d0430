"""Which part of a model each rank holds: computed once, read by layers, loader, KV cache and memory planner. No torch.

Attention is split by whole KV groups (a KV head and the query heads that share it), because a group needs no exchange
inside attention. Where KV heads do not divide, some ranks hold a group more, and get fewer columns of the feed-forward
network in return. With more ranks than KV heads, each KV head is held by several ranks, which divide its query heads.
"""

import heapq
from dataclasses import dataclass
from itertools import accumulate, pairwise

from core.errors import Unshardable
from parallel.models.spec import ModelSpec

MAX_UNIT = 32
"""Feed-forward columns and vocabulary rows move between ranks in units of this many, where the sizes allow it, so that
slices stay aligned for matrix kernels and for blocks of quantised checkpoints."""


@dataclass(frozen=True)
class RankShard:
    """One rank's ranges of the checkpoint's own numbering."""

    query_heads: range
    kv_heads: range
    ffn: range
    """Columns of the feed-forward network: rows of gate and up, columns of down."""
    vocab: range
    """Rows of the embedding and of the LM head."""

    def num_parameters(self, spec: ModelSpec) -> int:
        """Return how many weights this rank holds, biases and norms included."""
        embedding = len(self.vocab) * spec.hidden_size * (1 if spec.tie_word_embeddings else 2)
        norms = 2 * spec.hidden_size + (2 * spec.head_dim if spec.qk_norm else 0)
        layer = self._attention_parameters(spec) + self._ffn_parameters(spec) + norms
        return embedding + spec.num_layers * layer + spec.hidden_size

    def _attention_parameters(self, spec: ModelSpec) -> int:
        query_width = len(self.query_heads) * spec.head_dim
        qkv_width = query_width + 2 * len(self.kv_heads) * spec.head_dim
        biases = (qkv_width if spec.qkv_bias else 0) + (spec.hidden_size if spec.o_bias else 0)
        return (qkv_width + query_width) * spec.hidden_size + biases

    def _ffn_parameters(self, spec: ModelSpec) -> int:
        biases = 2 * len(self.ffn) + spec.hidden_size if spec.mlp_bias else 0
        return 3 * len(self.ffn) * spec.hidden_size + biases


@dataclass(frozen=True)
class ShardPlan:
    """How a model is split over the ranks of a TP group."""

    ranks: tuple[RankShard, ...]

    @classmethod
    def of(cls, spec: ModelSpec, world_size: int) -> "ShardPlan":
        """Return the split with the smallest largest rank. Raises Unshardable naming the sizes that work."""
        if not _can_shard(spec, world_size):
            raise Unshardable(_explain(spec, world_size))
        if world_size <= spec.num_kv_heads:
            kv_heads, query_heads = _whole_groups(spec, world_size)
        else:
            kv_heads, query_heads = _replicated_groups(spec, world_size)
        ffn = _balanced_ffn(spec, query_heads, kv_heads)
        vocab = _even(spec.vocab_size, world_size)
        return cls(tuple(RankShard(*parts) for parts in zip(query_heads, kv_heads, ffn, vocab, strict=True)))


def _can_shard(spec: ModelSpec, world_size: int) -> bool:
    if not 1 <= world_size <= min(spec.intermediate_size, spec.vocab_size):
        return False
    if world_size <= spec.num_kv_heads:
        return True
    return world_size % spec.num_kv_heads == 0 and spec.num_heads % world_size == 0


def _explain(spec: ModelSpec, world_size: int) -> str:
    sizes = [str(size) for size in range(1, spec.num_heads + 1) if _can_shard(spec, size)]
    choice = f"{', '.join(sizes[:-1])} or {sizes[-1]}" if len(sizes) > 1 else sizes[0]
    return (
        f"num_attention_heads={spec.num_heads} with num_key_value_heads={spec.num_kv_heads} cannot be split over "
        f"tensor_parallel_size={world_size}; use {choice}"
    )


def _whole_groups(spec: ModelSpec, world_size: int) -> tuple[list[range], list[range]]:
    kv_heads = _even(spec.num_kv_heads, world_size, unit=1)
    size = spec.group_size
    return kv_heads, [range(kv.start * size, kv.stop * size) for kv in kv_heads]


def _replicated_groups(spec: ModelSpec, world_size: int) -> tuple[list[range], list[range]]:
    query_heads = _even(spec.num_heads, world_size, unit=1)
    ranks_per_kv_head = world_size // spec.num_kv_heads
    owned = [rank // ranks_per_kv_head for rank in range(world_size)]
    return [range(kv_head, kv_head + 1) for kv_head in owned], query_heads


def _balanced_ffn(spec: ModelSpec, query_heads: list[range], kv_heads: list[range]) -> list[range]:
    """Return consecutive column ranges: a unit for every rank, then each unit to the rank that holds least so far."""
    world_size = len(query_heads)
    unit = _unit(spec.intermediate_size, world_size)
    # Counted in columns, of 3 D weights each (gate, up, down). A query head (q, o) or KV head (k, v) has 2 E D.
    held = [2 * spec.head_dim * (len(q) + len(kv)) / 3 + unit for q, kv in zip(query_heads, kv_heads, strict=True)]
    sizes = [unit] * world_size
    lightest = [(load, rank) for rank, load in enumerate(held)]
    heapq.heapify(lightest)
    for _ in range(spec.intermediate_size // unit - world_size):
        load, rank = lightest[0]
        sizes[rank] += unit
        heapq.heapreplace(lightest, (load + unit, rank))
    return _consecutive(sizes)


def _even(total: int, world_size: int, unit: int | None = None) -> list[range]:
    """Return `world_size` consecutive ranges over `total` that differ by one unit at most, larger ones first."""
    unit = unit or _unit(total, world_size)
    share, rest = divmod(total // unit, world_size)
    return _consecutive([unit * (share + (rank < rest)) for rank in range(world_size)])


def _unit(total: int, world_size: int) -> int:
    """Return the largest power of two up to MAX_UNIT that divides `total` and leaves at least one unit to each rank."""
    unit = MAX_UNIT
    while total % unit or total // unit < world_size:
        unit //= 2
    return unit


def _consecutive(sizes: list[int]) -> list[range]:
    return [range(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0))]
