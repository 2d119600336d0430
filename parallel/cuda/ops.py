"""The operations of a model on an NVIDIA GPU.

T tokens in step, D model dim, F feed-forward columns on this rank, R outputs, I inputs, V vocabulary rows on this rank,
H query heads on this rank, K kv heads on this rank, E head dim, S rows that sample.

Nothing here waits for the device, and what is allocated or launched depends on shapes alone: a step of fixed shape can
be captured in a CUDA graph, given a CudaBatch over tensors that outlive it.
"""

import torch
from torch import Tensor

from parallel.attention.base import AttentionBatch, KVLayout, LayerKV
from parallel.cuda.activation import silu_mul
from parallel.cuda.attention_decode import attend_decode_rows, choose_split
from parallel.cuda.attention_extend import attend_longer_rows
from parallel.cuda.attention_varlen import VarlenAttention
from parallel.cuda.batch import CudaBatch
from parallel.cuda.choose import join_chunks, read_chunks
from parallel.cuda.embedding import PlainEmbedding, QuantisedEmbedding
from parallel.cuda.linear import CublasMatmul, Fp8Matmul, ScaledMatmul, can_be_fp8
from parallel.cuda.norm import add_rms_norm, rms_norm
from parallel.cuda.quantised import QuantisedMatmul, pack
from parallel.cuda.rope import rotate_and_write
from parallel.formats.quantised import QuantFormat, QuantisedMatrix
from parallel.ops.base import Best, EmbeddingTable, HeadNorms, HeadShape, Matmul


class CudaOps:
    """The Ops of an NVIDIA GPU."""

    name = "cuda"

    def __init__(
        self,
        dtype: torch.dtype,
        num_multiprocessors: int,
        fp8: ScaledMatmul | None = None,
        varlen: VarlenAttention | None = None,
    ) -> None:
        """Without `fp8`, weights in FP8 are dequantised; with `varlen`, prompts are attended by torch."""
        self.activation_dtype = dtype
        self._num_multiprocessors = num_multiprocessors
        self._fp8 = fp8
        self._varlen = varlen
        # Of the latest step, for its other layers.
        self._given: AttentionBatch | None = None
        self._batch: CudaBatch | None = None

    def matmul(self, weight_RI: Tensor | QuantisedMatrix, bias_R: Tensor | None) -> Matmul:
        """Return the product in the weight's own format; dequantised, and saying so, where that has no kernel."""
        if not isinstance(weight_RI, QuantisedMatrix):
            return CublasMatmul(weight_RI, bias_R)
        if weight_RI.format is not QuantFormat.FP8:
            return QuantisedMatmul(pack(weight_RI), bias_R, self.activation_dtype, self._num_multiprocessors)
        if self._fp8 is not None and can_be_fp8(weight_RI):
            return Fp8Matmul(weight_RI, bias_R, self._fp8)
        why = "no fp8 tensor cores" if self._fp8 is None else f"sizes {weight_RI.shape} are no multiples of 16"
        return CublasMatmul(weight_RI.dequantised(self.activation_dtype), bias_R, f" (fp8 dequantised: {why})")

    def embedding(self, weight_VD: Tensor | QuantisedMatrix | None, head: Matmul | None) -> EmbeddingTable:
        """Return the lookup; rows are looked up in a tied int8 or int4 head itself."""
        if isinstance(head, QuantisedMatmul):
            return QuantisedEmbedding(head.weight, self.activation_dtype, shares_memory=True)
        assert weight_VD is not None, "only an int8 or int4 head can be looked up without the weight it was made of"
        if not isinstance(weight_VD, QuantisedMatrix):
            return PlainEmbedding(weight_VD, shares_memory=head is not None and head.shares(weight_VD))
        if weight_VD.format is QuantFormat.FP8:
            return PlainEmbedding(weight_VD.dequantised(self.activation_dtype), shares_memory=False)
        return QuantisedEmbedding(pack(weight_VD), self.activation_dtype, shares_memory=False)

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Return the norm in memory of its own."""
        return rms_norm(x_TD, weight_D, eps)

    def add_rms_norm(self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Add `x_TD` to `residual_TD` (mutates), return the residual's norm."""
        return add_rms_norm(x_TD, residual_TD, weight_D, eps)

    def silu_mul(self, gate_up_TF: Tensor) -> Tensor:
        """Return silu(gate) * up."""
        return silu_mul(gate_up_TF)

    def kv_layout(self, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> KVLayout:
        """Return keys and values token by token, as tier 0 has them."""
        shape = (block_size, num_kv_heads, head_dim)
        return KVLayout(shape, shape, shape[:2] if dtype == torch.int8 else None, dtype)

    def rotation(self, positions_T: Tensor, frequencies: Tensor) -> Tensor:
        """Return cosines, then sines; by torch, whose cosine is right for angles of any size."""
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
        """Write keys and values (a slot below 0: nowhere); return q_THE, a view of `qkv_TR`, which is overwritten."""
        return rotate_and_write(qkv_TR, shape, norms, rotation_TE, kv, batch.slots_T)

    def attend(self, q_THE: Tensor, kv: LayerKV, batch: AttentionBatch, scale: float) -> Tensor:
        """Return out_THE: rows of one token by split contexts, longer ones tile by tile."""
        step = self._on_device(batch)
        out_THE = torch.empty(q_THE.shape, dtype=q_THE.dtype, device=q_THE.device)
        if step.has_decode_rows:
            split = choose_split(step.num_rows, kv.key.shape[2], self._num_multiprocessors)
            attend_decode_rows(q_THE, kv, step, scale, split, out_THE)
        if step.has_longer_rows:
            if self._varlen is not None and self._varlen.can_attend(q_THE, step):
                self._varlen.attend_longer_rows(q_THE, kv, step, scale, out_THE)
            else:
                attend_longer_rows(q_THE, kv, step, scale, out_THE)
        return out_THE

    def best(self, logits_SV: Tensor) -> Best:
        """Return the largest logits and the lowest of their indices."""
        joined = join_chunks(read_chunks(logits_SV, None), None)
        return Best(joined.logit_S, joined.index_S, joined.is_sound_S)

    def _on_device(self, batch: AttentionBatch) -> CudaBatch:
        """Return the batch with its lengths on the device; copied once a step."""
        if self._batch is None or batch is not self._given:
            self._given, self._batch = batch, CudaBatch.of(batch)
        return self._batch
