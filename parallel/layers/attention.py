"""Grouped-query attention (arXiv 2305.13245), split by heads.

T tokens in step, D model dim, H query heads on this rank, E head dim, R = outputs of the qkv product on this rank.
"""

from torch import Tensor, nn

from parallel.attention.base import StepContext
from parallel.groups.base import TPGroup
from parallel.layers.linear import QKVParallelLinear, RowParallelLinear
from parallel.layers.norm import RMSNorm
from parallel.layers.shard import Storage
from parallel.models.spec import ModelSpec
from parallel.ops.base import HeadNorms, HeadShape
from parallel.sharding import RankShard


class Attention(nn.Module):
    """Attention of this rank's heads over the paged KV of one layer. One all-reduce, in `o_proj`."""

    def __init__(self, layer_index: int, spec: ModelSpec, shard: RankShard, group: TPGroup, storage: Storage) -> None:
        super().__init__()
        size, heads = spec.head_dim, shard.query_heads
        self.layer_index = layer_index
        self.shape = HeadShape(len(heads), len(shard.kv_heads), size)
        self.scale = size**-0.5
        self.qkv_proj = QKVParallelLinear(spec.hidden_size, heads, shard.kv_heads, size, spec.qkv_bias, storage)
        self.q_norm = RMSNorm(size, spec.rms_norm_eps, storage) if spec.qk_norm else None
        self.k_norm = RMSNorm(size, spec.rms_norm_eps, storage) if spec.qk_norm else None
        columns = range(heads.start * size, heads.stop * size)
        self.o_proj = RowParallelLinear(columns, spec.hidden_size, spec.o_bias, group, storage)
        self._ops = storage.ops

    @property
    def head_norms(self) -> HeadNorms | None:
        """The norms over each head's features, if the model has them."""
        if self.q_norm is None or self.k_norm is None:
            return None
        return HeadNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)

    def forward(self, x_TD: Tensor, rotation_TE: Tensor, context: StepContext) -> Tensor:
        """Return attention's share of the residual stream, y_TD; writes this layer's KV."""
        kv, batch = context.layers[self.layer_index], context.batch
        qkv_TR = self.qkv_proj(x_TD)
        q_THE = self._ops.rotate_and_write(qkv_TR, self.shape, self.head_norms, rotation_TE, kv, batch)
        return self.o_proj(self._ops.attend(q_THE, kv, batch, self.scale).flatten(1))
