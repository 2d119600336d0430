"""How a layer says which slices of which checkpoint tensors it holds. The one loader that reads this is in models/."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from parallel.ops.base import Ops


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
    """Where a model's weights live, in which precision, and which tier computes with them."""

    dtype: torch.dtype
    """Of matrices; what is added to or multiplied with activations one by one has the activations' own."""
    device: torch.device
    ops: Ops
    are_matrices_late: bool = False
    """Matrices have no memory until the loader reads them, and then only the format that they are kept in."""

    def parameter(self, *shape: int) -> nn.Parameter:
        """Return an uninitialised vector for activations; the loader writes it, autograd never sees it."""
        return _empty(shape, self.ops.activation_dtype, self.device)

    def matrix(self, num_rows: int, num_columns: int) -> nn.Parameter:
        """Return an uninitialised matrix. On a CPU its memory is taken when it is written."""
        device = torch.device("meta") if self.are_matrices_late else self.device
        return _empty((num_rows, num_columns), self.dtype, device)

    def linear(self, out_features: int, in_features: int, has_bias: bool) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Return an uninitialised weight and, if asked, bias."""
        return self.matrix(out_features, in_features), self.parameter(out_features) if has_bias else None


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
