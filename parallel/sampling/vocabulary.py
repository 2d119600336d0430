"""Questions about logits whose vocabulary is split over the ranks; every rank gets the same answers.

Each function sends a few numbers a row instead of the row, and every rank then computes with the same numbers, so all
decide alike without being told.

S rows, V vocabulary rows on this rank, G ranks, K candidates over all ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from parallel.groups.base import TPGroup
from parallel.sampling.blocks import block_sums, first_over, pick, row_max
from parallel.sampling.filters import Candidates
from parallel.sampling.kernels import RowKernels


class Best(NamedTuple):
    """Each row's most likely token; equal logits go to the lower token id."""

    logit_S: Tensor
    token_id_S: Tensor

    @property
    def is_sound(self) -> Tensor:
        """[S], False where some logit is NaN or infinite, or where no token is allowed at all."""
        return torch.isfinite(self.logit_S)


class Weights(NamedTuple):
    """Unnormalised probabilities of this rank's tokens, and each rank's share of them."""

    weights_SV: Tensor
    """exp((logit - most likely logit) / temperature)."""
    sums_SC: Tensor
    mass_GS: Tensor

    @property
    def mass(self) -> Tensor:
        """[S], sum of the weights over the whole vocabulary."""
        return self.mass_GS.sum(0)


class ShardedVocabulary:
    """The vocabulary of a TP group, of which this rank has the rows `vocab`. Every method is a collective."""

    def __init__(self, group: TPGroup, vocab: range, device: torch.device, kernels: RowKernels | None = None) -> None:
        """Learn the other ranks' ranges; a collective as well. Without `kernels` plain torch does their work."""
        self._group = group
        self._kernels = kernels
        self._vocab = vocab
        ranges = group.all_gather(torch.tensor([vocab.start, vocab.stop], device=device)).tolist()
        self._max_width = max(stop - start for start, stop in ranges)

    @property
    def max_width(self) -> int:
        """Vocabulary rows of the rank that has most; as many candidates as this are the whole vocabulary."""
        return self._max_width

    def best(self, logits_SV: Tensor) -> Best:
        """Return each row's most likely token."""
        max_S, place_S = row_max(logits_SV) if self._kernels is None else self._kernels.best(logits_SV)
        if self._group.world_size == 1:
            return Best(max_S, place_S)
        mine_S2 = torch.stack((max_S.double(), (place_S + self._vocab.start).double()), dim=1)
        logit_GS, token_id_GS = self._group.all_gather(mine_S2).unbind(2)
        # Ranks hold ascending ranges and max returns the first of equals, so equal logits go to the lower token id.
        logit_S, rank_S = logit_GS.max(0)
        return Best(logit_S, token_id_GS.gather(0, rank_S[None])[0].long())

    def weights(self, logits_SV: Tensor, best_logit_S: Tensor, temperature_S: Tensor) -> Weights:
        """Return what an inverse CDF needs. The logits are not changed."""
        shifted_SV = logits_SV - best_logit_S.to(logits_SV.dtype)[:, None]
        weights_SV = shifted_SV.div_(temperature_S[:, None]).exp_()
        sums_SC = block_sums(weights_SV)
        return Weights(weights_SV, sums_SC, self._group.all_gather(sums_SC.sum(1)))

    def draw(self, weights: Weights, uniform_S: Tensor) -> Tensor:
        """Return token ids by the inverse CDF over the vocabulary in token order: exact, no candidates."""
        mass_SG = weights.mass_GS.T
        target_S = uniform_S * mass_SG.sum(1)
        owner_S, before_S = first_over(mass_SG, target_S)
        # Only the owner's pick counts; the others pick too, so that the exchange has one shape.
        mine_S = pick(weights.weights_SV, weights.sums_SC, target_S - before_S) + self._vocab.start
        return self._group.all_gather(mine_S).gather(0, owner_S[None])[0]

    def candidates(self, logits_SV: Tensor, width: int) -> Candidates:
        """Return the most likely tokens: up to `width` of each rank, sorted by logit, equals by token id."""
        width = min(width, self._max_width)
        logits_SK, token_ids_SK, boundary_S = self._local_candidates(logits_SV, width)
        packed = torch.cat((logits_SK.double(), token_ids_SK.double(), boundary_S.double()[:, None]), dim=1)
        gathered_GSX = self._group.all_gather(packed)
        logits_SK = gathered_GSX[:, :, :width].transpose(0, 1).flatten(1)
        token_ids_SK = gathered_GSX[:, :, width : 2 * width].transpose(0, 1).flatten(1)
        # Token ids of equal logits ascend from left to right, and the sort is stable.
        logits_SK, order_SK = logits_SK.sort(dim=1, descending=True, stable=True)
        # A token a rank kept back is at most its boundary; which of several at the boundary it kept back is arbitrary.
        boundary_S = gathered_GSX[:, :, -1].amax(0)
        num_known_S = (logits_SK > boundary_S[:, None]).sum(1)
        return Candidates(logits_SK, token_ids_SK.gather(1, order_SK).long(), num_known_S, boundary_S == -torch.inf)

    def logits_of(self, logits_SV: Tensor, token_ids_S: Tensor) -> Tensor:
        """Return the logit of one token of each row, float64."""
        column_S1 = (token_ids_S - self._vocab.start)[:, None]
        is_mine_S1 = (column_S1 >= 0) & (column_S1 < len(self._vocab))
        logit_S1 = logits_SV.gather(1, column_S1.clamp(0, len(self._vocab) - 1)).double()
        return self._group.all_gather(logit_S1.masked_fill_(~is_mine_S1, -torch.inf)).amax(0)[:, 0]

    def log_sum_exp(self, logits_SV: Tensor) -> Tensor:
        """Return the logarithm of the sum of exp(logit) over the vocabulary, float64."""
        return self._group.all_gather(logits_SV.logsumexp(1).double()).logsumexp(0)

    def _local_candidates(self, logits_SV: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits and token ids, padded to `width`, equal logits in token order; and what is left at most."""
        if width < logits_SV.shape[1] and self._kernels is not None:
            logits_SK, place_SK = self._kernels.top(logits_SV, width)
            return logits_SK, place_SK + self._vocab.start, logits_SK[:, -1]
        if width < logits_SV.shape[1]:
            logits_SK, place_SK = logits_SV.topk(width, dim=1, sorted=False)
            place_SK, order_SK = place_SK.sort(dim=1)
            return logits_SK.gather(1, order_SK), place_SK + self._vocab.start, logits_SK.amin(1)
        padding = (0, width - logits_SV.shape[1])
        logits_SK = torch.nn.functional.pad(logits_SV, padding, value=-torch.inf)
        token_ids_K = torch.arange(width, device=logits_SV.device) + self._vocab.start
        nothing_S = torch.full((len(logits_SV),), -torch.inf, device=logits_SV.device)
        return logits_SK, token_ids_K.expand(len(logits_SV), -1), nothing_S
