"""How a layer says which slices of which checkpoint tensors it holds. The one loader that reads this is in models/."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


@dataclass(frozen=True)
class Shard:
    """The part of a checkpoint module's tensors that a layer holds on this rank."""

    rows: range | None = None
    """First dim; None is all."""
    columns: range | None = None
    """Second dim; None is all. A bias has no columns, so every rank holds the bias of a column slice whole."""
    source: str | None = None
    """The module's name in the checkpoint, beside this layer's own; None when the names are equal."""


class ShardedLayer(nn.Module):
    """A layer that holds parameters. Each parameter is filled from the slices of `shards`, stacked by rows."""

    shards: tuple[Shard, ...] = (Shard(),)


class Storage(NamedTuple):
    """Where a model's weights live, and in which precision."""

    dtype: torch.dtype
    device: torch.device

    def parameter(self, *shape: int) -> nn.Parameter:
        """Return an uninitialised parameter; the loader writes it, autograd never sees it."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device), requires_grad=False)

    def linear(self, out_features: int, in_features: int, has_bias: bool) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Return an uninitialised weight and, if asked, bias."""
        return self.parameter(out_features, in_features), self.parameter(out_features) if has_bias else None
