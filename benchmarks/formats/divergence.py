"""How far the next-token distributions of a format are from those of float32.

T tokens of the text, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK_TOKENS = 64


class Divergence(NamedTuple):
    """Over the positions of a text."""

    mean_kl: float
    """Nats; of float32 from the format."""
    max_kl: float
    top1_agreement: float
    """Share of positions whose most likely token is the same."""
    perplexity: float
    """Of the text under the format."""


def divergence(reference_TV: Tensor, logits_TV: Tensor, token_ids: Sequence[int]) -> Divergence:
    """Return how `logits_TV` differ from the reference; position t predicts token t + 1."""
    kl: list[Tensor] = []
    agrees: list[Tensor] = []
    for reference, logits in zip(reference_TV.split(_CHUNK_TOKENS), logits_TV.split(_CHUNK_TOKENS), strict=True):
        expected, found = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
        kl.append((expected.exp() * (expected - found)).sum(-1))
        agrees.append(reference.argmax(-1) == logits.argmax(-1))
    kl_T = torch.cat(kl)
    surprise = torch.nn.functional.cross_entropy(logits_TV[:-1].float(), torch.tensor(token_ids[1:]))
    return Divergence(
        float(kl_T.mean()), float(kl_T.max()), float(torch.cat(agrees).double().mean()), float(surprise.exp())
    )
