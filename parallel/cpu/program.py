"""A loaded model as one C call a step.

T tokens in step, B rows in step, S rows that sample, V vocabulary rows on this rank.
"""

import ctypes
import weakref
from ctypes import byref

import numpy as np
import torch
from torch import Tensor

from parallel.attention.base import LayerKV
from parallel.cpu import abi
from parallel.cpu.kv import heads_of, kv_of
from parallel.cpu.library import KernelLibrary
from parallel.cpu.matrix import CpuEmbedding, CpuMatmul
from parallel.cpu.thread_plan import ThreadPlan
from parallel.cpu.threads import ThreadPool
from parallel.groups.shared_memory import SharedMemoryGroup
from parallel.kv_cache import KVCache
from parallel.models.decoder import CausalLM, DecoderLayer
from parallel.ops.base import EmbeddingTable, Matmul
from parallel.rank.rows import StepInputs


class CpuProgram:
    """The Forward of a model whose matrices are packed and whose KV cache has the CPU tier's layout."""

    name = "one call"

    def __init__(
        self,
        model: CausalLM,
        kv: KVCache,
        library: KernelLibrary,
        threads: ThreadPool,
        group: SharedMemoryGroup | None = None,
    ) -> None:
        """Describe the model to C; `group` is of the ranks that hold it together, None for one rank."""
        self._calls = library.calls
        self._threads = threads
        self._group = group
        layers = _decoder_layers(model)
        self._layers = (abi.Layer * len(layers))(*map(_layer, layers, kv.layers))
        attention = layers[0].self_attn
        heads = heads_of(attention.shape, kv.layers[0], attention.scale, model.spec.rms_norm_eps)
        self._model = _model(model, heads, self._layers, group)
        # C reads weights and KV through addresses.
        self._kept_alive = (model, kv)
        self._workspace: int = self._calls.eg_workspace_new()
        weakref.finalize(self, self._calls.eg_workspace_free, self._workspace)
        self._logits_SV = torch.empty((0, len(model.vocab)))
        self._thread_plan = ThreadPlan.measured(library, threads, _matrices(self._layers))

    def logits(self, inputs: StepInputs) -> Tensor:
        """Return float32 logits_SV, overwritten by the next step. Raises RankDied."""
        batch = _batch(inputs)
        logits_SV = self._logits_of(batch.num_sampled)
        self._threads.limit(self._thread_plan.threads_for(batch.num_tokens))
        status = self._calls.eg_step(
            self._threads.pointer, self._workspace, byref(self._model), byref(batch), logits_SV.data_ptr()
        )
        if self._group is not None:
            self._group.check("step", status)
        return logits_SV

    def step_times_s(self) -> dict[str, float]:
        """Return what all steps so far spent their time on, by part."""
        seconds = np.zeros(len(abi.STEP_PARTS))
        self._calls.eg_step_times(self._workspace, seconds.ctypes.data)
        return dict(zip(abi.STEP_PARTS, seconds.tolist(), strict=True))

    def _logits_of(self, num_sampled: int) -> Tensor:
        if num_sampled > len(self._logits_SV):
            self._logits_SV = self._logits_SV.new_empty((num_sampled, self._logits_SV.shape[1]))
        return self._logits_SV[:num_sampled]


def _batch(inputs: StepInputs) -> abi.Batch:
    """Return the step by address; `inputs` keeps the arrays alive."""
    table_BM = inputs.block_table_BM
    return abi.Batch(
        num_tokens=len(inputs.token_ids_T),
        num_rows=len(inputs.query_lens_B),
        num_sampled=len(inputs.last_token_S),
        table_stride=table_BM.strides[0] // table_BM.itemsize,
        token_ids=inputs.token_ids_T.ctypes.data,
        positions=inputs.positions_T.ctypes.data,
        slots=inputs.slots_T.ctypes.data,
        query_lens=inputs.query_lens_B.ctypes.data,
        context_lens=inputs.context_lens_B.ctypes.data,
        block_table=table_BM.ctypes.data,
        last_tokens=inputs.last_token_S.ctypes.data,
    )


def _decoder_layers(model: CausalLM) -> list[DecoderLayer]:
    return [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)]


def _model(
    model: CausalLM, heads: abi.Heads, layers: ctypes.Array[abi.Layer], group: SharedMemoryGroup | None
) -> abi.Model:
    spec, decoder = model.spec, model.model
    return abi.Model(
        hidden_size=spec.hidden_size,
        ffn_size=layers[0].down.num_inputs,
        num_layers=len(layers),
        vocab_first=model.vocab.start,
        eps=spec.rms_norm_eps,
        heads=heads,
        frequencies=decoder.rotary.frequencies.data_ptr(),
        final_norm=decoder.norm.weight.data_ptr(),
        embedding=_embedding(decoder.embed_tokens.table),
        head=_matrix(model.lm_head.matmul),
        layers=layers,
        group=None if group is None else group.handle,
    )


def _matrices(layers: ctypes.Array[abi.Layer]) -> list[abi.Matrix]:
    return [matrix for layer in layers for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down)]


def _layer(layer: DecoderLayer, kv: LayerKV) -> abi.Layer:
    norms = layer.self_attn.head_norms
    return abi.Layer(
        input_norm=layer.input_layernorm.weight.data_ptr(),
        post_norm=layer.post_attention_layernorm.weight.data_ptr(),
        q_norm=None if norms is None else norms.q_E.data_ptr(),
        k_norm=None if norms is None else norms.k_E.data_ptr(),
        qkv=_matrix(layer.self_attn.qkv_proj.matmul),
        o=_matrix(layer.self_attn.o_proj.matmul),
        gate_up=_matrix(layer.mlp.gate_up_proj.matmul),
        down=_matrix(layer.mlp.down_proj.matmul),
        kv=kv_of(kv),
    )


def _matrix(matmul: Matmul) -> abi.Matrix:
    assert isinstance(matmul, CpuMatmul), "a program needs packed matrices"
    return matmul.matrix


def _embedding(table: EmbeddingTable) -> abi.Matrix:
    assert isinstance(table, CpuEmbedding), "a program needs packed matrices"
    return table.matrix
