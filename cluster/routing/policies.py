"""Routing policies. Views come least recently picked first, so the first of equals is the fair choice."""

from collections.abc import Sequence

from cluster.routing.base import GroupView, RoutingRequest


class LeastOutstandingTokens:
    """Fewest tokens still to be computed; equals take turns."""

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of the first view with the least outstanding work."""
        return min(groups, key=lambda group: group.num_outstanding_tokens).group_id


class RoundRobin:
    """Groups take turns whatever their load; for comparison only."""

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id that was picked least recently."""
        return groups[0].group_id
