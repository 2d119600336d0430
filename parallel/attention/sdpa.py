"""Tier 0 attention: plain torch on any device, the reference for faster backends.

T tokens in step, H query heads on this rank, K kv heads on this rank, G query heads per kv head, E head dim,
N blocks in the pool, S block size, B decode rows, L context tokens gathered, C tokens of one row's chunk.

Rows that compute one token are attended together: their blocks are gathered side by side, padded to the longest of
them, and the query heads of a group take the place of a query dim. A row that computes more is attended alone, under a
causal mask. Which tokens, blocks and masks that takes is worked out once per step and used by every layer.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from parallel.attention.base import AttentionBatch, LayerKV

_MAX_PADDING = 2
_SHORT_CONTEXT = 256
"""Decode rows share a gather if none is padded to more than twice its own length; short ones always share."""


class SdpaAttention:
    """Gathers each row's blocks for torch's attention. Remembers the last step's shape."""

    def __init__(self) -> None:
        self._batch: AttentionBatch | None = None
        self._chunks: list[_DecodeRows | _PrefillRow] = []

    def attend(self, q_THE: Tensor, kv: LayerKV, batch: AttentionBatch, scale: float) -> Tensor:
        """Return out_THE. Token i of a row attends to the row's positions up to its own.

        q is already rotated and normed; head h reads kv head h // (H / K).
        """
        if batch is not self._batch:
            self._batch, self._chunks = batch, _split(batch, kv, q_THE.dtype)
        if len(self._chunks) == 1:
            return self._chunks[0].attend(q_THE, kv, scale)
        out_THE = torch.empty(q_THE.shape, dtype=q_THE.dtype, device=q_THE.device)
        for chunk in self._chunks:
            out_THE[chunk.tokens] = chunk.attend(q_THE[chunk.tokens], kv, scale)
        return out_THE


@dataclass(frozen=True)
class _DecodeRows:
    """Rows of one token each and of similar context lengths."""

    tokens: slice | Tensor
    """Where the rows' tokens are among the step's."""
    blocks: Tensor
    """Block ids of all rows, each padded to the longest: B * L / S."""
    mask_B11L: Tensor
    """0 where a row has context, -inf where it is padded; in the precision of q."""

    def attend(self, q_BHE: Tensor, kv: LayerKV, scale: float) -> Tensor:
        num_rows = len(q_BHE)
        k_BLKE = _gather(kv.key, kv.key_scale, self.blocks, q_BHE.dtype).unflatten(0, (num_rows, -1))
        v_BLKE = _gather(kv.value, kv.value_scale, self.blocks, q_BHE.dtype).unflatten(0, (num_rows, -1))
        out_BKGE = scaled_dot_product_attention(
            q_BHE.unflatten(1, (k_BLKE.shape[2], -1)),
            k_BLKE.transpose(1, 2),
            v_BLKE.transpose(1, 2),
            attn_mask=self.mask_B11L,
            scale=scale,
        )
        return out_BKGE.flatten(1, 2)


@dataclass(frozen=True)
class _PrefillRow:
    """One row of several tokens."""

    tokens: slice
    blocks: Tensor
    """Block ids of the row, L / S rounded up."""
    context_len: int
    mask_CL: Tensor | None
    """0 where a token may look, -inf where not; None if there is no earlier context, which kernels know as causal."""

    def attend(self, q_CHE: Tensor, kv: LayerKV, scale: float) -> Tensor:
        k_LKE = _gather(kv.key, kv.key_scale, self.blocks, q_CHE.dtype)[: self.context_len]
        v_LKE = _gather(kv.value, kv.value_scale, self.blocks, q_CHE.dtype)[: self.context_len]
        q_KGCE = q_CHE.unflatten(1, (k_LKE.shape[1], -1)).permute(1, 2, 0, 3)
        # A group's query heads read the same keys through a stride of zero; nothing is repeated in memory.
        out_KGCE = scaled_dot_product_attention(
            q_KGCE,
            k_LKE.transpose(0, 1).unsqueeze(1).expand(-1, q_KGCE.shape[1], -1, -1),
            v_LKE.transpose(0, 1).unsqueeze(1).expand(-1, q_KGCE.shape[1], -1, -1),
            attn_mask=self.mask_CL,
            is_causal=self.mask_CL is None,
            scale=scale,
        )
        return out_KGCE.permute(2, 0, 1, 3).flatten(1, 2)


def write_kv(kv: LayerKV, k_TKE: Tensor, v_TKE: Tensor, slots_T: Tensor) -> None:
    """Write keys and values into `kv` (mutates); int8 caches get one scale a token and head.

    What is not finite is written as zeros. The request it belongs to is lost anyway, by its own residual stream; but a
    block is padding, later even content, of other rows, and NaN would pass any mask.
    """
    _write(kv.key, kv.key_scale, k_TKE, slots_T)
    _write(kv.value, kv.value_scale, v_TKE, slots_T)


def _write(cache_NSKE: Tensor, scale_NSK: Tensor | None, new_TKE: Tensor, slots_T: Tensor) -> None:
    finite_TKE = torch.nan_to_num(new_TKE, nan=0.0, posinf=0.0, neginf=0.0)
    if scale_NSK is not None:
        scale_TK = finite_TKE.abs().amax(-1).float() / 127
        scale_NSK.flatten(0, 1).index_copy_(0, slots_T, scale_TK)
        finite_TKE = (finite_TKE.float() / scale_TK.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)).round()
    cache_NSKE.flatten(0, 1).index_copy_(0, slots_T, finite_TKE.to(cache_NSKE.dtype))


def _gather(cache_NSKE: Tensor, scale_NSK: Tensor | None, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the blocks' slots in order, [len(blocks) * S, K, E]."""
    slots_XKE = cache_NSKE.index_select(0, blocks).flatten(0, 1)
    if scale_NSK is None:
        return slots_XKE.to(dtype)
    scale_XK = scale_NSK.index_select(0, blocks).flatten(0, 1)
    return (slots_XKE * scale_XK.unsqueeze(-1)).to(dtype)


def _split(batch: AttentionBatch, kv: LayerKV, dtype: torch.dtype) -> list[_DecodeRows | _PrefillRow]:
    block_size = kv.key.shape[1]
    decode_rows = [row for row, num_tokens in enumerate(batch.query_lens) if num_tokens == 1]
    prefill_rows = [row for row, num_tokens in enumerate(batch.query_lens) if num_tokens > 1]
    return [
        *(_decode_rows(rows, batch, block_size, dtype) for rows in _similar_lengths(decode_rows, batch.context_lens)),
        *(_prefill_row(row, batch, block_size, dtype) for row in prefill_rows),
    ]


def _similar_lengths(rows: list[int], context_lens: tuple[int, ...]) -> list[list[int]]:
    """Return `rows` in as few groups as keep the padding bounded, each in batch order."""
    groups: list[list[int]] = []
    longest = 0
    for row in sorted(rows, key=lambda row: context_lens[row], reverse=True):
        if not groups or longest > max(_SHORT_CONTEXT, _MAX_PADDING * context_lens[row]):
            groups.append([])
            longest = context_lens[row]
        groups[-1].append(row)
    return [sorted(group) for group in groups]


def _decode_rows(rows: list[int], batch: AttentionBatch, block_size: int, dtype: torch.dtype) -> _DecodeRows:
    device = batch.slots_T.device
    context_lens = [batch.context_lens[row] for row in rows]
    num_blocks = -(-max(context_lens) // block_size)
    is_padding_BL = torch.arange(num_blocks * block_size, device=device) >= torch.tensor(
        context_lens, device=device
    ).unsqueeze(1)
    mask_BL = torch.zeros(is_padding_BL.shape, dtype=dtype, device=device).masked_fill_(is_padding_BL, -torch.inf)
    return _DecodeRows(
        tokens=_tokens_of(rows, batch.query_lens, device),
        blocks=batch.block_table_BM[rows, :num_blocks].flatten(),
        mask_B11L=mask_BL[:, None, None, :],
    )


def _prefill_row(row: int, batch: AttentionBatch, block_size: int, dtype: torch.dtype) -> _PrefillRow:
    device = batch.slots_T.device
    num_tokens, context_len = batch.query_lens[row], batch.context_lens[row]
    first = sum(batch.query_lens[:row])
    mask_CL = None
    if context_len > num_tokens:
        mask_CL = torch.full((num_tokens, context_len), -torch.inf, dtype=dtype, device=device)
        mask_CL.triu_(context_len - num_tokens + 1)
    return _PrefillRow(
        tokens=slice(first, first + num_tokens),
        blocks=batch.block_table_BM[row, : -(-context_len // block_size)],
        context_len=context_len,
        mask_CL=mask_CL,
    )


def _tokens_of(rows: list[int], query_lens: tuple[int, ...], device: torch.device) -> slice | Tensor:
    """Return the positions of one-token rows among the step's tokens; a slice, which costs no copy, if adjacent."""
    firsts = list(accumulate(query_lens, initial=0))
    tokens = [firsts[row] for row in rows]
    if tokens[-1] - tokens[0] == len(tokens) - 1:
        return slice(tokens[0], tokens[-1] + 1)
    return torch.tensor(tokens, device=device)
