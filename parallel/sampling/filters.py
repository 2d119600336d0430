"""Top-k, top-p and min-p over candidates sorted by (logit, then lower token id).

Each filter keeps a prefix of that order, so the three together keep the shortest of three prefixes, and a prefix that
ends inside what is known for certain needs no more candidates. Order of meaning: temperature, top-k, then top-p of what
top-k left (renormalised), then min-p relative to the most likely token, as transformers orders its warpers. vLLM takes
min-p before top-k and top-p, which only differs when min-p and top-p are combined: its top-p is a share of what min-p
left. Exactly k tokens pass top-k, of equal logits those with lower ids. A filter never leaves fewer than one token.

F filtered rows, K candidates.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Filters(NamedTuple):
    """What the rows ask for, on the logits' device."""

    temperature_F: Tensor
    top_k_F: Tensor
    top_p_F: Tensor
    min_p_F: Tensor

    def rows(self, index: Tensor) -> "Filters":
        """Return the rows at `index`."""
        return Filters(*(values[index] for values in self))


class Candidates(NamedTuple):
    """The most likely tokens of each row, best first."""

    logits_FK: Tensor
    """float64."""
    token_ids_FK: Tensor
    num_known_F: Tensor
    """No token outside these first candidates comes before them."""
    is_complete_F: Tensor
    """Whether the candidates are every token that has a probability."""


class Nucleus(NamedTuple):
    """What the filters leave."""

    weights_FK: Tensor
    """Probability relative to the most likely token's, 0 where filtered out."""
    is_decided_F: Tensor
    """Whether the candidates were enough to know; if not, the row's weights are void."""


def nucleus(candidates: Candidates, mass_F: Tensor, filters: Filters) -> Nucleus:
    """Apply the filters. `mass_F` is the sum of exp((logit - most likely logit) / temperature) over the vocabulary."""
    logits_FK, _, num_known_F, is_complete_F = candidates
    weights_FK = torch.exp((logits_FK - logits_FK[:, :1]) / filters.temperature_F.double()[:, None])
    position_K = torch.arange(logits_FK.shape[1], device=logits_FK.device)
    is_known_FK = position_K < num_known_F[:, None]
    top_k_decides_F = filters.top_k_F <= num_known_F
    in_top_k_FK = is_known_FK & (position_K < filters.top_k_F[:, None])
    mass_F = torch.where(top_k_decides_F, (weights_FK * in_top_k_FK).sum(1), mass_F)

    before_FK = torch.nn.functional.pad(weights_FK.cumsum(1)[:, :-1], (1, 0))
    in_top_p_FK = (before_FK < (filters.top_p_F * mass_F)[:, None]) | (filters.top_p_F >= 1)[:, None]
    in_min_p_FK = weights_FK >= filters.min_p_F[:, None]
    # A filter that ends before the known candidates do has found its end; top-p after an unfinished top-k has not,
    # because it does not know the mass it takes its share of.
    has_no_top_k_F = filters.top_k_F == torch.iinfo(torch.int64).max
    min_p_ends_F = (in_min_p_FK & is_known_FK).sum(1) < num_known_F
    top_p_ends_F = (in_top_p_FK & is_known_FK).sum(1) < num_known_F
    min_p_decides_F = min_p_ends_F & (has_no_top_k_F | (filters.top_p_F >= 1))
    top_p_decides_F = top_p_ends_F & has_no_top_k_F
    keep_FK = in_top_k_FK & in_top_p_FK & in_min_p_FK
    return Nucleus(weights_FK * keep_FK, is_complete_F | top_k_decides_F | min_p_decides_F | top_p_decides_F)
