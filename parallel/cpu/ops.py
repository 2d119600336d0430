"""The CPU tier one operation a call, on float32 activations: where a step is not one call, and in tests.

T tokens in step, B rows in step, D model dim, F feed-forward columns on this rank, R outputs of a matrix, H query heads
on this rank, K kv heads on this rank, E head dim, S rows that sample.
"""

import ctypes
import weakref
from ctypes import byref
from typing import NamedTuple

import torch
from torch import Tensor

from parallel.attention.base import AttentionBatch, KVLayout, LayerKV
from parallel.cpu import abi
from parallel.cpu.arena import Arena
from parallel.cpu.kv import heads_of, kv_layout, kv_of
from parallel.cpu.library import KernelLibrary
from parallel.cpu.matrix import CpuEmbedding, CpuMatmul
from parallel.cpu.threads import ThreadPool
from parallel.formats.quantised import QuantisedMatrix
from parallel.ops.base import Best, EmbeddingTable, HeadNorms, HeadShape, Matmul


class CpuOps:
    """The Ops of the C library. Weights are packed as they are given: bfloat16 ones stay bfloat16, codes stay codes."""

    name = "cpu"
    activation_dtype = torch.float32

    def __init__(self, library: KernelLibrary, threads: ThreadPool) -> None:
        self._library = library
        self._calls = library.calls
        self._threads = threads
        self._arena = Arena()
        self._attention = _AttentionPlan(library, threads)

    def matmul(self, weight_RI: Tensor | QuantisedMatrix, bias_R: Tensor | None) -> Matmul:
        """Return the product with a packed copy of the weight."""
        return self._packed(weight_RI, bias_R)

    def embedding(self, weight_VD: Tensor | QuantisedMatrix | None, head: Matmul | None) -> EmbeddingTable:
        """Return the lookup; one that is tied reads the head's packed weight, and takes no memory."""
        if head is None:
            assert weight_VD is not None
            return CpuEmbedding(self._packed(weight_VD, None), is_tied=False)
        assert isinstance(head, CpuMatmul)
        return CpuEmbedding(head)

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Return the norm in memory of its own."""
        y_TD = torch.empty_like(x_TD)
        self._calls.eg_rms_norm(self._threads.pointer, _at(x_TD), _at(weight_D), eps, *x_TD.shape, _at(y_TD))
        return y_TD

    def add_rms_norm(self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Add `x_TD` to `residual_TD` (mutates), return the residual's norm."""
        y_TD = torch.empty_like(x_TD)
        self._calls.eg_add_rms_norm(
            self._threads.pointer, _at(x_TD), _at(residual_TD), _at(weight_D), eps, *x_TD.shape, _at(y_TD)
        )
        return y_TD

    def silu_mul(self, gate_up_TF: Tensor) -> Tensor:
        """Return silu(gate) * up."""
        num_tokens, width = gate_up_TF.shape
        y_TF = gate_up_TF.new_empty((num_tokens, width // 2))
        self._calls.eg_silu_mul(self._threads.pointer, _at(gate_up_TF), num_tokens, width // 2, _at(y_TF))
        return y_TF

    def kv_layout(self, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> KVLayout:
        """Return the order of eagle.h."""
        return kv_layout(block_size, num_kv_heads, head_dim, dtype)

    def rotation(self, positions_T: Tensor, frequencies: Tensor) -> Tensor:
        """Return cosines, then sines, in float32."""
        num_tokens, head_dim = len(positions_T), 2 * len(frequencies)
        rotation_TE = torch.empty((num_tokens, head_dim))
        batch = abi.Batch(num_tokens=num_tokens, positions=_at(positions_T))
        self._calls.eg_rotation(self._threads.pointer, byref(batch), _at(frequencies), head_dim, _at(rotation_TE))
        return rotation_TE

    def rotate_and_write(
        self,
        qkv_TR: Tensor,
        shape: HeadShape,
        norms: HeadNorms | None,
        rotation_TE: Tensor,
        kv: LayerKV,
        batch: AttentionBatch,
    ) -> Tensor:
        """Write keys and values; return q_THE, a view of `qkv_TR`, which is overwritten."""
        heads = heads_of(shape, kv, scale=1.0, eps=0.0 if norms is None else norms.eps)
        c_batch = abi.Batch(num_tokens=len(qkv_TR), slots=_at(batch.slots_T))
        self._calls.eg_rotate_and_write(
            self._threads.pointer,
            byref(heads),
            byref(kv_of(kv)),
            byref(c_batch),
            _at(rotation_TE),
            None if norms is None else _at(norms.q_E),
            None if norms is None else _at(norms.k_E),
            _at(qkv_TR),
        )
        return qkv_TR.unflatten(1, (-1, shape.head_dim))[:, : shape.num_query_heads]

    def attend(self, q_THE: Tensor, kv: LayerKV, batch: AttentionBatch, scale: float) -> Tensor:
        """Return out_THE; queries that are no view of the qkv product are copied."""
        num_tokens, num_query_heads, head_dim = q_THE.shape
        shape = HeadShape(num_query_heads, kv.key.shape[1], head_dim)
        heads = heads_of(shape, kv, scale, eps=0.0)
        width = (shape.num_query_heads + 2 * shape.num_kv_heads) * head_dim
        if q_THE.stride() != (width, head_dim, 1):
            qkv_TR = q_THE.new_empty((num_tokens, width))
            qkv_TR[:, : num_query_heads * head_dim] = q_THE.flatten(1)
            q_THE = qkv_TR
        out_THE = q_THE.new_empty((num_tokens, num_query_heads, head_dim))
        plan = self._attention.of(batch, heads)
        self._calls.eg_attend(self._threads.pointer, byref(heads), byref(kv_of(kv)), plan, _at(q_THE), _at(out_THE))
        return out_THE

    def best(self, logits_SV: Tensor) -> Best:
        """Return the largest logits and the lowest of their indices."""
        num_rows, num_columns = logits_SV.shape
        logit_S = torch.empty(num_rows)
        index_S = torch.empty(num_rows, dtype=torch.int64)
        is_sound_S = torch.empty(num_rows, dtype=torch.bool)
        self._calls.eg_best(
            self._threads.pointer, _at(logits_SV), num_rows, num_columns, _at(logit_S), _at(index_S), _at(is_sound_S)
        )
        return Best(logit_S, index_S, is_sound_S)

    def _packed(self, weight_RI: Tensor | QuantisedMatrix, bias_R: Tensor | None) -> CpuMatmul:
        return CpuMatmul(self._library, self._threads, self._arena, weight_RI, bias_R)


class _AttentionPlan:
    """The eg_attention_plan of one step at a time, made when its first layer attends."""

    def __init__(self, library: KernelLibrary, threads: ThreadPool) -> None:
        self._calls = library.calls
        self._threads = threads
        self._pointer: int = self._calls.eg_attention_plan_new()
        weakref.finalize(self, self._calls.eg_attention_plan_free, self._pointer)
        self._planned: _Planned | None = None

    def of(self, batch: AttentionBatch, heads: abi.Heads) -> int:
        """Return the plan of this batch, valid until another is asked for."""
        planned = self._planned
        if planned is None or planned.batch is not batch or planned.heads != bytes(heads):
            self._planned = planned = _Planned(batch, bytes(heads), _lens(batch.query_lens), _lens(batch.context_lens))
            c_batch = abi.Batch(
                num_tokens=len(batch.slots_T),
                num_rows=len(batch.query_lens),
                table_stride=batch.block_table_BM.stride(0),
                query_lens=ctypes.addressof(planned.query_lens),
                context_lens=ctypes.addressof(planned.context_lens),
                block_table=_at(batch.block_table_BM),
            )
            self._calls.eg_plan_attention(self._pointer, self._threads.pointer, byref(heads), byref(c_batch))
        return self._pointer


class _Planned(NamedTuple):
    """What a plan was made of, kept alive while the plan refers to it."""

    batch: AttentionBatch
    heads: bytes
    query_lens: ctypes.Array[ctypes.c_int64]
    context_lens: ctypes.Array[ctypes.c_int64]


def _lens(lens: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(lens))(*lens)


def _at(tensor: Tensor) -> int:
    """Return the address C reads the tensor at."""
    return tensor.data_ptr()
