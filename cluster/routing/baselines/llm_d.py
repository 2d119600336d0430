"""llm-d's default profile: three scores between 0 and 1, weighted 2, 2 and 3; the greatest sum wins.

llm-d-inference-scheduler pkg/epp/config/loader/defaults.go: queue-scorer, kv-cache-utilization-scorer,
prefix-cache-scorer, max-score picker. The queue score is stretched over the pool, so that one waiting request against
none counts the same as fifty against none.
"""

from collections.abc import Sequence

from cluster.routing.base import GroupView, RoutingRequest

QUEUE_WEIGHT = 2.0
MEMORY_WEIGHT = 2.0
PREFIX_WEIGHT = 3.0


class LlmD:
    """The greatest weighted sum of short queue, free memory and cached prefix."""

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of the first view with the greatest sum."""
        longest = max(group.num_waiting for group in groups)
        spread = longest - min(group.num_waiting for group in groups)

        def score(group: GroupView) -> float:
            queue = (longest - group.num_waiting) / spread if spread else 1.0
            prefix = group.num_cached_tokens / max(1, request.num_tokens)
            return QUEUE_WEIGHT * queue + MEMORY_WEIGHT * (1 - group.kv_usage) + PREFIX_WEIGHT * prefix

        return max(groups, key=score).group_id
