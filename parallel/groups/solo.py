"""The group of one: every collective is the identity."""

from torch import Tensor


class SoloGroup:
    """A TPGroup of world size 1; no process, no socket."""

    @property
    def rank(self) -> int:
        """Always 0."""
        return 0

    @property
    def world_size(self) -> int:
        """Always 1."""
        return 1

    @property
    def choice(self) -> None:
        """Nothing travels."""
        return None

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return `x` itself."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Return `x` with a new first dim of 1."""
        return x.unsqueeze(0)

    def barrier(self) -> None:
        """Return at once."""

    def close(self) -> None:
        """Do nothing; idempotent."""
