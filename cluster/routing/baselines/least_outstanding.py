"""The group with the least to do, counted in requests or in tokens: the usual step beyond taking turns."""

from collections.abc import Sequence

from cluster.routing.base import GroupView, RoutingRequest


class LeastRequests:
    """Fewest requests, waiting or running; equals take turns. A long prompt counts like a short one."""

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of the first view with the fewest requests."""
        return min(groups, key=lambda group: group.num_requests).group_id


class LeastOutstandingTokens:
    """Fewest tokens still to be computed; equals take turns. A cached prefix counts only where it is."""

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of the first view with the least outstanding work."""
        return min(groups, key=lambda group: group.num_outstanding_tokens).group_id
