"""Grouped-query attention (arXiv 2305.13245), split by heads.

T tokens in step, D model dim, H query heads on this rank, K kv heads on this rank, E head dim, R = H * E.
"""

from torch import Tensor, nn

from parallel.attention.base import StepContext
from parallel.groups.base import TPGroup
from parallel.layers.linear import QKVParallelLinear, RowParallelLinear
from parallel.layers.norm import RMSNorm
from parallel.layers.rotary import Rotation
from parallel.layers.shard import Storage
from parallel.models.spec import ModelSpec
from parallel.sharding import RankShard


class Attention(nn.Module):
    """Attention of this rank's heads over the paged KV of one layer. One all-reduce, in `o_proj`."""

    def __init__(self, layer_index: int, spec: ModelSpec, shard: RankShard, group: TPGroup, storage: Storage) -> None:
        super().__init__()
        size, heads = spec.head_dim, shard.query_heads
        self.layer_index = layer_index
        self.scale = size**-0.5
        self.qkv_proj = QKVParallelLinear(spec.hidden_size, heads, shard.kv_heads, size, spec.qkv_bias, storage)
        self.q_norm = RMSNorm(size, spec.rms_norm_eps, storage) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(size, spec.rms_norm_eps, storage) if spec.qk_norm else nn.Identity()
        columns = range(heads.start * size, heads.stop * size)
        self.o_proj = RowParallelLinear(columns, spec.hidden_size, spec.o_bias, group, storage)

    def forward(self, x_TD: Tensor, rotation: Rotation, context: StepContext) -> Tensor:
        """Return attention's share of the residual stream, y_TD; writes this layer's KV."""
        q_THE, k_TKE, v_TKE = self.qkv_proj(x_TD)
        q_THE = rotation.apply(self.q_norm(q_THE))
        k_TKE = rotation.apply(self.k_norm(k_TKE))
        kv = context.layers[self.layer_index]
        out_THE = context.backend.forward(q_THE, k_TKE, v_TKE, kv, context.batch, self.scale)
        return self.o_proj(out_THE.flatten(1))
