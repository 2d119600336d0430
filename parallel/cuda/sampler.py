"""Choosing the next token of every row without asking the host anything: what a CUDA graph can hold.

S rows that sample, V vocabulary rows on this rank, G ranks, W vocabulary rows of the rank that has most.

The choice is tier 0's (`sampling/sampler.py`), from the same random numbers; only where a number falls on a boundary
between two tokens may rounding decide otherwise. Every rank chooses the same token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from parallel.cuda.choose import Joined, RowSampling, choose, draw, join_chunks, read_chunks
from parallel.cuda.filtered import draw_filtered
from parallel.groups.base import TPGroup
from parallel.sampling.blocks import first_over


class Chosen(NamedTuple):
    """What a step chose, on the device."""

    token_id_S: Tensor
    """int64; 0 for a row that failed."""
    is_failed_S: Tensor
    """True for a row with a logit that is NaN or +inf, or without a token that is allowed."""


class DeviceSampler:
    """The sampler of one rank. Construction and `sample` are collectives."""

    def __init__(self, group: TPGroup, vocab: range, device: torch.device) -> None:
        """Learn the other ranks' ranges."""
        self._group = group
        ranges_G2 = group.all_gather(torch.tensor([vocab.start, vocab.stop], device=device))
        self._first_row_G = ranges_G2[:, 0].contiguous()
        self._max_width = int((ranges_G2[:, 1] - ranges_G2[:, 0]).max().item())
        self._first_row = vocab.start

    @property
    def has_cheap_filters(self) -> bool:
        """Whether a step that is told of filters it does not have takes no longer than one launch of an empty kernel.

        Ranks that share the vocabulary would gather all of it.
        """
        return self._group.world_size == 1

    def sample(self, logits_SV: Tensor, rows: RowSampling, has_filters: bool) -> Chosen:
        """Return a token for each row; `logits_SV` is float32 and not changed.

        Without `has_filters` no row may have top-k, top-p or min-p. With it more kernels are launched: capture both
        forms, and replay the one that the step's rows need.
        """
        chosen = choose(logits_SV, rows) if self._group.world_size == 1 else self._choose_together(logits_SV, rows)
        token_id_S = chosen.index_S
        if has_filters:
            self._draw_filtered(logits_SV, chosen, rows)
        return Chosen(token_id_S.masked_fill_(~chosen.is_sound_S, 0), ~chosen.is_sound_S)

    def _choose_together(self, logits_SV: Tensor, rows: RowSampling) -> Joined:
        """Return the choice from the vocabulary of all ranks, and token ids for indices. Two exchanges."""
        chunks = read_chunks(logits_SV, rows.temperature_S)
        mine = join_chunks(chunks, rows.temperature_S)
        mine_S3 = torch.stack((mine.logit_S.double(), (mine.index_S + self._first_row).double(), mine.mass_S), dim=1)
        logit_GS, token_id_GS, mass_GS = self._group.all_gather(mine_S3).unbind(2)
        # Ranks hold ascending ranges and max returns the first of equals, so equal logits go to the lower token id.
        best_logit_S, best_rank_S = logit_GS.max(0)
        best_id_S = token_id_GS.gather(0, best_rank_S[None])[0].long()

        is_random_S = rows.temperature_S > 0
        temperature_S = torch.where(is_random_S, rows.temperature_S, 1).double()
        # Each rank's masses are relative to its own best logit; -inf, a rank without allowed tokens, has none.
        share_GS = torch.exp((logit_GS - best_logit_S) / temperature_S).nan_to_num_(nan=0.0)
        mass_SG = (mass_GS.nan_to_num(nan=0.0) * share_GS).T
        target_S = rows.uniform_S * mass_SG.sum(1)
        owner_S, before_S = first_over(mass_SG, target_S)
        my_share_S = share_GS[self._group.rank]
        my_target_S = (target_S - before_S) / my_share_S.clamp(min=torch.finfo(torch.float64).tiny)
        # Only the owner's index counts; the others draw too, so that the exchange has one shape.
        drawn_S = draw(logits_SV, chunks, mine, rows.temperature_S, my_target_S) + self._first_row
        drawn_S = self._group.all_gather(drawn_S).gather(0, owner_S[None])[0]
        token_id_S = torch.where(is_random_S, drawn_S, best_id_S)
        return Joined(best_logit_S.float(), token_id_S, torch.isfinite(best_logit_S), mass_SG.sum(1))

    def _draw_filtered(self, logits_SV: Tensor, chosen: Joined, rows: RowSampling) -> None:
        """Overwrite the token ids of the rows that filter."""
        if self._group.world_size == 1:
            draw_filtered(logits_SV, chosen.logit_S, rows, chosen.index_S)
            return
        # Candidates would be less to send, but how many it takes is not known without asking the host.
        padding = (0, self._max_width - logits_SV.shape[1])
        padded_SW = torch.nn.functional.pad(logits_SV, padding, value=-torch.inf)
        whole_SGW = self._group.all_gather(padded_SW).transpose(0, 1).flatten(1)
        # Rows that do not filter keep an index that stands for their token.
        index_S = torch.full_like(chosen.index_S, -1)
        draw_filtered(whole_SGW, chosen.logit_S, rows, index_S)
        token_id_S = self._first_row_G[index_S.clamp(min=0) // self._max_width] + index_S % self._max_width
        chosen.index_S.copy_(torch.where(index_S < 0, chosen.index_S, token_id_S))
