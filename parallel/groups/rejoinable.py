"""A group whose place a later one can take, so that layers outlive the group they were built in."""

from torch import Tensor

from parallel.groups.base import TPGroup
from parallel.ops.choice import OpChoice


class RejoinableGroup:
    """A TPGroup that passes every call to the current one. Rank and world size stay what they were."""

    def __init__(self, group: TPGroup) -> None:
        self._group = group

    def rejoin(self, group: TPGroup) -> None:
        """Have later calls go to `group`; the former one stays the caller's to close."""
        assert (group.rank, group.world_size) == (self.rank, self.world_size), "weights are of one rank of one size"
        self._group = group

    @property
    def rank(self) -> int:
        """This process's index."""
        return self._group.rank

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self._group.world_size

    @property
    def choice(self) -> OpChoice | None:
        """How sums travel now."""
        return self._group.choice

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the elementwise sum over ranks; may overwrite `x`. Raises RankDied."""
        return self._group.all_reduce(x)

    def all_gather(self, x: Tensor) -> Tensor:
        """Return every rank's `x`, [world_size, *x.shape]. Raises RankDied."""
        return self._group.all_gather(x)

    def barrier(self) -> None:
        """Return after every rank arrived. Raises RankDied."""
        self._group.barrier()

    def close(self) -> None:
        """Leave the current group; idempotent, never blocks on a dead peer."""
        self._group.close()
