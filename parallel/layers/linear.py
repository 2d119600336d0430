"""Tensor-parallel linear layers (Megatron-LM, arXiv 1909.08053 section 3).

T tokens, D model dim, I input features, R this rank's share of a split dim, H query heads on this rank, K kv heads on
this rank, E head dim.

A column-parallel layer splits its outputs and needs no exchange; the row-parallel layer behind it splits its inputs
the same way and sums over the ranks.
"""

from typing import NamedTuple

from torch import Tensor, nn

from parallel.groups.base import TPGroup
from parallel.layers.matmul import Matmul, PlainMatmul, fastest_matmul
from parallel.layers.shard import Shard, ShardedLayer, Storage


class Linear(ShardedLayer):
    """A weight and an optional bias; subclasses say which slices of the checkpoint they are."""

    def __init__(self, weight_OI: nn.Parameter, bias_O: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = weight_OI
        self.bias = bias_O
        self.matmul: Matmul = PlainMatmul(weight_OI)

    def pack(self) -> None:
        """Keep the weight in the form that multiplies fastest, letting go of `weight`; call after loading."""
        if self.weight is not None:
            self.matmul = fastest_matmul(self.weight)
            self.weight = self.weight if isinstance(self.matmul, PlainMatmul) else None


class ColumnParallelLinear(Linear):
    """y_TR = x_TD @ W_RD^T + b_R, this rank's `rows` of the outputs. No collective."""

    def __init__(self, in_features: int, rows: range, has_bias: bool, storage: Storage) -> None:
        super().__init__(*storage.linear(len(rows), in_features, has_bias))
        self.shards = (Shard(rows=rows),)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return y_TR."""
        return self.matmul(x_TD, self.bias)


class RowParallelLinear(Linear):
    """y_TD = sum over ranks of x_TR @ W_DR^T, then + b_D. One all-reduce."""

    def __init__(self, columns: range, out_features: int, has_bias: bool, group: TPGroup, storage: Storage) -> None:
        super().__init__(*storage.linear(out_features, len(columns), has_bias))
        self.shards = (Shard(columns=columns),)
        self.group = group

    def forward(self, x_TR: Tensor) -> Tensor:
        """Return y_TD, the same on every rank."""
        y_TD = self.group.all_reduce(self.matmul(x_TR, None))
        return y_TD if self.bias is None else y_TD.add_(self.bias)


class Heads(NamedTuple):
    """Projected heads of one layer; views of one tensor."""

    q_THE: Tensor
    k_TKE: Tensor
    v_TKE: Tensor


class QKVParallelLinear(Linear):
    """Column-parallel q, k and v of whole heads in one product. No collective."""

    def __init__(
        self, in_features: int, query_heads: range, kv_heads: range, head_dim: int, has_bias: bool, storage: Storage
    ) -> None:
        num_heads = [len(query_heads), len(kv_heads), len(kv_heads)]
        super().__init__(*storage.linear(sum(num_heads) * head_dim, in_features, has_bias))
        self.num_heads = num_heads
        self.head_dim = head_dim
        q_rows, kv_rows = _rows_of(query_heads, head_dim), _rows_of(kv_heads, head_dim)
        self.shards = (
            Shard(rows=q_rows, source="q_proj"),
            Shard(rows=kv_rows, source="k_proj"),
            Shard(rows=kv_rows, source="v_proj"),
        )

    def forward(self, x_TD: Tensor) -> Heads:
        """Return this rank's query, key and value heads."""
        qkv_TR = self.matmul(x_TD, self.bias)
        q_THE, k_TKE, v_TKE = qkv_TR.view(len(x_TD), -1, self.head_dim).split(self.num_heads, dim=1)
        return Heads(q_THE, k_TKE, v_TKE)


class GateUpParallelLinear(Linear):
    """Column-parallel gate and up in one product. No collective."""

    def __init__(self, in_features: int, rows: range, has_bias: bool, storage: Storage) -> None:
        super().__init__(*storage.linear(2 * len(rows), in_features, has_bias))
        self.shards = (Shard(rows=rows, source="gate_proj"), Shard(rows=rows, source="up_proj"))

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return gate_TR and up_TR, views of one tensor."""
        gate_TR, up_TR = self.matmul(x_TD, self.bias).chunk(2, dim=-1)
        return gate_TR, up_TR


def _rows_of(heads: range, head_dim: int) -> range:
    return range(heads.start * head_dim, heads.stop * head_dim)
