"""Prompts attended by torch's own FlashAttention (`torch.nn.attention.varlen`), where this torch has it.

T tokens in step, L cached tokens of the longer rows, one row after another, K kv heads on this rank, E head dim.

Keys and values are gathered out of their blocks first: a copy of L * K * E numbers, small beside the arithmetic of a
prompt. `varlen_attn` reads blocks itself from torch 2.12 on, but FlashAttention 2 under it wants blocks of a multiple
of 256 tokens, which is more than a prefix cache should round to. Not measured against our own kernel yet.
"""

import inspect
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from parallel.attention.base import LayerKV
from parallel.cuda.batch import CudaBatch


class VarlenAttention:
    """Attends rows of several tokens. Remembers the last step's shape. Needs lengths on the host: not for graphs."""

    name = "torch varlen_attn over gathered blocks"

    def __init__(self, varlen_attn: Callable[..., object], options: dict[str, object]) -> None:
        self._varlen_attn = varlen_attn
        self._options = options
        self._batch: CudaBatch | None = None
        self._step: _GatheredRows | None = None

    @classmethod
    def probe(cls) -> "VarlenAttention | None":
        """Return it if this torch has a `varlen_attn` that can be causal, told by its signature."""
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            return None
        parameters = inspect.signature(varlen_attn).parameters
        if "window_size" in parameters:
            options: dict[str, object] = {"window_size": (-1, 0)}
        elif "is_causal" in parameters:
            options = {"is_causal": True}
        else:
            return None
        if "scale" not in parameters:
            return None
        if "enable_gqa" in parameters:
            options["enable_gqa"] = True
        return cls(varlen_attn, options)

    def can_attend(self, q_THE: Tensor, batch: CudaBatch) -> bool:
        """Return whether the step's lengths are known here, and FlashAttention takes this precision."""
        return bool(batch.query_lens) and q_THE.dtype in (torch.bfloat16, torch.float16)

    def attend_longer_rows(self, q_THE: Tensor, kv: LayerKV, batch: CudaBatch, scale: float, out_THE: Tensor) -> None:
        """Write the rows that compute more than one token to `out_THE` (mutates)."""
        if self._step is None or batch is not self._batch:
            self._batch, self._step = batch, _GatheredRows(batch, kv.key.shape[1])
        step = self._step
        out_XHE = self._varlen_attn(
            q_THE.index_select(0, step.tokens_X),
            _gathered(kv.key, kv.key_scale, step.slots_L, q_THE.dtype),
            _gathered(kv.value, kv.value_scale, step.slots_L, q_THE.dtype),
            step.query_starts,
            step.context_starts,
            step.max_query_len,
            step.max_context_len,
            scale=scale,
            **self._options,
        )
        assert isinstance(out_XHE, Tensor)
        out_THE.index_copy_(0, step.tokens_X, out_XHE)


class _GatheredRows:
    """Which tokens and slots the longer rows of a step have. X tokens of those rows."""

    def __init__(self, batch: CudaBatch, block_size: int) -> None:
        rows = [row for row, num_tokens in enumerate(batch.query_lens) if num_tokens > 1]
        query_lens = [batch.query_lens[row] for row in rows]
        context_lens = [batch.context_lens[row] for row in rows]
        starts = list(accumulate(batch.query_lens, initial=0))
        device = batch.slots_T.device
        self.max_query_len, self.max_context_len = max(query_lens), max(context_lens)
        self.query_starts = _cumulative(query_lens, device)
        self.context_starts = _cumulative(context_lens, device)
        self.tokens_X = torch.cat([torch.arange(starts[row], starts[row + 1]) for row in rows]).to(device)
        row_L = torch.repeat_interleave(torch.tensor(rows), torch.tensor(context_lens)).to(device)
        position_L = torch.cat([torch.arange(context_len) for context_len in context_lens]).to(device)
        block_L = batch.block_table_BM[row_L, position_L // block_size].long()
        self.slots_L = block_L * block_size + position_L % block_size


def _cumulative(lens: list[int], device: torch.device) -> Tensor:
    return torch.tensor(list(accumulate(lens, initial=0)), dtype=torch.int32).to(device)


def _gathered(cache_NSKE: Tensor, scale_NSK: Tensor | None, slots_L: Tensor, dtype: torch.dtype) -> Tensor:
    x_LKE = cache_NSKE.flatten(0, 1).index_select(0, slots_L)
    if scale_NSK is None:
        return x_LKE.to(dtype)
    return (x_LKE * scale_NSK.flatten(0, 1).index_select(0, slots_L).unsqueeze(-1)).to(dtype)
