"""Groups take turns: what a plain load balancer does."""

from collections.abc import Sequence

from cluster.routing.base import GroupView, RoutingRequest


class RoundRobin:
    """Groups take turns whatever their load."""

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id that was picked least recently."""
        return groups[0].group_id
