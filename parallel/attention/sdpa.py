"""Tier 0 attention: plain torch on any device, the reference for faster backends."""

from torch import Tensor

from parallel.attention.base import AttentionBatch, LayerKV


class SdpaBackend:
    """An AttentionBackend that gathers each row's blocks and calls scaled_dot_product_attention."""

    def forward(
        self, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, kv: LayerKV, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """Write k and v into `kv` at `batch.slots_T` (mutates), then return attention out_THE."""
        raise NotImplementedError
