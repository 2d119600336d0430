"""The gated feed-forward network (SwiGLU, arXiv 2002.05202), split by its inner columns.

T tokens in step, D model dim, R inner columns on this rank.
"""

from torch import Tensor, nn

from parallel.groups.base import TPGroup
from parallel.layers.linear import GateUpParallelLinear, RowParallelLinear
from parallel.layers.shard import Storage
from parallel.models.spec import ModelSpec


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)). One all-reduce, in `down_proj`."""

    def __init__(self, spec: ModelSpec, ffn: range, group: TPGroup, storage: Storage) -> None:
        super().__init__()
        self.gate_up_proj = GateUpParallelLinear(spec.hidden_size, ffn, spec.mlp_bias, storage)
        self.down_proj = RowParallelLinear(ffn, spec.hidden_size, spec.mlp_bias, group, storage)
        self._ops = storage.ops

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return the network's share of the residual stream, y_TD."""
        return self.down_proj(self._ops.silu_mul(self.gate_up_proj(x_TD)))
