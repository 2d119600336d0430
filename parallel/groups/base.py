"""The seam between a layer and a collective."""

from typing import Protocol

from torch import Tensor

from parallel.ops.choice import OpChoice


class TPGroup(Protocol):
    """The ranks that hold one model copy. Collectives block until every rank joins; all raise RankDied if one does not.

    Tensors must be contiguous and on the group's device; every rank passes the same shape unless said otherwise.
    """

    @property
    def rank(self) -> int:
        """This process's index, 0 to world_size - 1."""
        ...

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        ...

    @property
    def choice(self) -> OpChoice | None:
        """How sums travel; None where they need not."""
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the elementwise sum over ranks; may overwrite `x`."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """Return every rank's `x` stacked on a new first dim, [world_size, *x.shape], in rank order."""
        ...

    def barrier(self) -> None:
        """Return after every rank arrived."""
        ...

    def close(self) -> None:
        """Leave the group; idempotent, never blocks on a dead peer."""
        ...
