"""Tensor-parallel linear layers (Megatron-LM, arXiv 1909.08053 section 3).

T tokens, D model dim, I input features, O output features, R this rank's share of a split dim.

A column-parallel layer splits its outputs and needs no exchange; the row-parallel layer behind it splits its inputs
the same way and sums over the ranks.
"""

from torch import Tensor, nn

from parallel.formats.quantised import QuantisedMatrix
from parallel.groups.base import TPGroup
from parallel.layers.shard import Shard, ShardedLayer, Storage
from parallel.ops.base import Matmul


class Linear(ShardedLayer):
    """A weight and an optional bias; subclasses say which slices of the checkpoint they are.

    The weight is a parameter until it is packed, which the first product does if nobody did before.
    """

    def __init__(self, weight_OI: nn.Parameter, bias_O: nn.Parameter | None, storage: Storage) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = weight_OI
        self.bias = bias_O
        self._ops = storage.ops
        self._matmul: Matmul | None = None

    @property
    def matmul(self) -> Matmul:
        """The product, with the weight in the form that multiplies fastest."""
        if self._matmul is None:
            assert self.weight is not None
            self.pack(self.weight.detach())
        assert self._matmul is not None
        return self._matmul

    def pack(self, weight_OI: Tensor | QuantisedMatrix) -> None:
        """Multiply by `weight_OI` from now on, and let go of `weight`. The bias must have been loaded."""
        self._matmul = self._ops.matmul(weight_OI, self._bias_of_product())
        self.weight = None

    def _bias_of_product(self) -> Tensor | None:
        return None if self.bias is None else self.bias.detach()


class ColumnParallelLinear(Linear):
    """y_TR = x_TD @ W_RD^T + b_R, this rank's `rows` of the outputs. No collective."""

    def __init__(self, in_features: int, rows: range, has_bias: bool, storage: Storage) -> None:
        super().__init__(*storage.linear(len(rows), in_features, has_bias), storage)
        self.shards = (Shard(rows=rows),)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return y_TR."""
        return self.matmul(x_TD)


class RowParallelLinear(Linear):
    """y_TD = sum over ranks of x_TR @ W_DR^T, + b_D, which rank 0 adds to its part. One all-reduce."""

    def __init__(self, columns: range, out_features: int, has_bias: bool, group: TPGroup, storage: Storage) -> None:
        super().__init__(*storage.linear(out_features, len(columns), has_bias), storage)
        self.shards = (Shard(columns=columns),)
        self.group = group

    def forward(self, x_TR: Tensor) -> Tensor:
        """Return y_TD, the same on every rank."""
        return self.group.all_reduce(self.matmul(x_TR))

    def _bias_of_product(self) -> Tensor | None:
        return super()._bias_of_product() if self.group.rank == 0 else None


class QKVParallelLinear(Linear):
    """Column-parallel q, k and v of whole heads in one product. No collective."""

    def __init__(
        self, in_features: int, query_heads: range, kv_heads: range, head_dim: int, has_bias: bool, storage: Storage
    ) -> None:
        num_heads = len(query_heads) + 2 * len(kv_heads)
        super().__init__(*storage.linear(num_heads * head_dim, in_features, has_bias), storage)
        q_rows, kv_rows = _rows_of(query_heads, head_dim), _rows_of(kv_heads, head_dim)
        self.shards = (
            Shard(rows=q_rows, source="q_proj"),
            Shard(rows=kv_rows, source="k_proj"),
            Shard(rows=kv_rows, source="v_proj"),
        )

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return qkv_TR: this rank's query heads, then key heads, then value heads."""
        return self.matmul(x_TD)


class GateUpParallelLinear(Linear):
    """Column-parallel gate and up in one product. No collective."""

    def __init__(self, in_features: int, rows: range, has_bias: bool, storage: Storage) -> None:
        super().__init__(*storage.linear(2 * len(rows), in_features, has_bias), storage)
        self.shards = (Shard(rows=rows, source="gate_proj"), Shard(rows=rows, source="up_proj"))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return gate_TR and up_TR side by side."""
        return self.matmul(x_TD)


def _rows_of(heads: range, head_dim: int) -> range:
    return range(heads.start * head_dim, heads.stop * head_dim)
