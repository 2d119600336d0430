"""The better of two at random by number of requests: Ray Serve's default."""

from collections.abc import Sequence
from random import Random

from cluster.routing.base import GroupView, RoutingRequest


class PowerOfTwo:
    """Compares two groups and never all, so it does not herd on old reports; ray/serve/_private/request_router."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of the one with fewer requests, of two."""
        two = self._rng.sample(groups, min(2, len(groups)))
        return min(two, key=lambda group: group.num_requests).group_id
