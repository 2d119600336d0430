"""Tier 0: plain torch on any device; what the other tiers are tested against.

T tokens in step, D model dim, F feed-forward columns on this rank, R outputs, I inputs, V vocabulary rows on this rank,
H query heads on this rank, K kv heads on this rank, E head dim, S rows that sample.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding, rms_norm, silu

from parallel.attention.base import AttentionBatch, KVLayout, LayerKV
from parallel.attention.sdpa import SdpaAttention, write_kv
from parallel.formats.quantised import QuantisedMatrix
from parallel.ops.base import Best, EmbeddingTable, HeadNorms, HeadShape, Matmul
from parallel.ops.torch_matmul import fastest_matmul


class TorchOps:
    """The Ops of every dtype and device. Quantised weights are dequantised when they are loaded."""

    name = "torch"

    def __init__(self, dtype: torch.dtype) -> None:
        self.activation_dtype = dtype
        self._attention = SdpaAttention()

    def matmul(self, weight_RI: Tensor | QuantisedMatrix, bias_R: Tensor | None) -> Matmul:
        """Return the product; a packed one is a copy of the weight."""
        return fastest_matmul(self._dense(weight_RI), bias_R)

    def embedding(self, weight_VD: Tensor | QuantisedMatrix | None, head: Matmul | None) -> EmbeddingTable:
        """Return the lookup; rows cannot be looked up in a packed head, so a tied weight is kept plain as well."""
        assert weight_VD is not None, "the torch tier looks rows up in the weight itself"
        return TorchEmbedding(self._dense(weight_VD), head)

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Return the norm in memory of its own."""
        return rms_norm(x_TD, weight_D.shape, weight_D, eps)

    def add_rms_norm(self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Add `x_TD` to `residual_TD` (mutates), return the residual's norm."""
        residual_TD += x_TD
        return self.rms_norm(residual_TD, weight_D, eps)

    def silu_mul(self, gate_up_TF: Tensor) -> Tensor:
        """Return silu(gate) * up."""
        gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
        return silu(gate_TF).mul_(up_TF)

    def kv_layout(self, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> KVLayout:
        """Return keys and values token by token."""
        shape = (block_size, num_kv_heads, head_dim)
        return KVLayout(shape, shape, shape[:2] if dtype == torch.int8 else None, dtype)

    def rotation(self, positions_T: Tensor, frequencies: Tensor) -> Tensor:
        """Return cosines, then sines, in the activations' precision, which others rotate in as well."""
        angles = positions_T.to(torch.float32).unsqueeze(1) * frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.activation_dtype)

    def rotate_and_write(
        self,
        qkv_TR: Tensor,
        shape: HeadShape,
        norms: HeadNorms | None,
        rotation_TE: Tensor,
        kv: LayerKV,
        batch: AttentionBatch,
    ) -> Tensor:
        """Write keys and values; return q_THE in memory of its own."""
        heads_TXE = qkv_TR.view(len(qkv_TR), -1, shape.head_dim)
        q_THE, k_TKE, v_TKE = heads_TXE.split([shape.num_query_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
        if norms is not None:
            q_THE = self.rms_norm(q_THE, norms.q_E, norms.eps)
            k_TKE = self.rms_norm(k_TKE, norms.k_E, norms.eps)
        write_kv(kv, rotate(k_TKE, rotation_TE), v_TKE, batch.slots_T)
        return rotate(q_THE, rotation_TE)

    def attend(self, q_THE: Tensor, kv: LayerKV, batch: AttentionBatch, scale: float) -> Tensor:
        """Return out_THE by torch's attention over gathered blocks."""
        return self._attention.attend(q_THE, kv, batch, scale)

    def best(self, logits_SV: Tensor) -> Best:
        """Return the largest logits and the lowest of their indices."""
        best = logits_SV.max(dim=1)
        # max gives any of equal indices; the lowest is the first that equals it. A NaN equals nothing: index 0.
        index_S = (logits_SV == best.values.unsqueeze(1)).byte().argmax(dim=1)
        return Best(best.values, index_S, torch.isfinite(best.values))

    def _dense(self, weight: Tensor | QuantisedMatrix) -> Tensor:
        return weight.dequantised(self.activation_dtype) if isinstance(weight, QuantisedMatrix) else weight


class TorchEmbedding:
    """Rows of a plain weight."""

    def __init__(self, weight_VD: Tensor, head: Matmul | None) -> None:
        self._weight_VD = weight_VD
        shares_memory = head is not None and head.shares(weight_VD)
        self.num_bytes = 0 if shares_memory else weight_VD.nbytes

    def __call__(self, rows_T: Tensor) -> Tensor:
        """Return x_TD, zeros for rows that are not in the table."""
        num_rows = len(self._weight_VD)
        is_elsewhere_T = (rows_T < 0) | (rows_T >= num_rows)
        x_TD = embedding(rows_T.clamp(0, max(num_rows - 1, 0)), self._weight_VD)
        return x_TD.masked_fill_(is_elsewhere_T.unsqueeze(1), 0)


def rotate(x_THE: Tensor, rotation_TE: Tensor) -> Tensor:
    """Return heads with feature i turned together with feature i + E/2 (arXiv 2104.09864, half-split layout)."""
    cos_T1E, sin_T1E = rotation_TE.unsqueeze(1).chunk(2, dim=-1)
    first_THE, second_THE = x_THE.chunk(2, dim=-1)
    return torch.cat((first_THE * cos_T1E - second_THE * sin_T1E, second_THE * cos_T1E + first_THE * sin_T1E), dim=-1)
