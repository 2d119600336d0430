"""Any group: the least a router can do, and what Dynamo's does in Ray Serve LLM when it gets no token ids."""

from collections.abc import Sequence
from random import Random

from cluster.routing.base import GroupView, RoutingRequest


class RandomChoice:
    """Every group is as good as any other."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of any of them."""
        return self._rng.choice(groups).group_id
