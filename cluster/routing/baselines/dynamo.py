"""NVIDIA Dynamo's default: blocks to prefill plus blocks that decode, one for one.

ai-dynamo/dynamo lib/kv-router/src/scheduling/selector.rs, argmin without temperature. A resident block costs about a
thousandth of the time of a block to be computed; weighing both alike gives away cached prefixes.
"""

from collections.abc import Sequence

from cluster.routing.base import GroupView, RoutingRequest

BLOCK_TOKENS = 16


class DynamoLinear:
    """The least sum of prefill and decode blocks."""

    def __init__(self, prefill_weight: float = 1.0) -> None:
        self._prefill_weight = prefill_weight

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of the first view with the least sum."""
        return min(groups, key=lambda group: self._num_blocks(group, request)).group_id

    def _num_blocks(self, group: GroupView, request: RoutingRequest) -> float:
        num_prefill = group.num_queued_tokens + max(0, request.num_tokens - group.num_cached_tokens)
        num_decode = group.num_kv_tokens + group.num_queued_tokens + request.num_tokens
        return (self._prefill_weight * num_prefill + num_decode) / BLOCK_TOKENS
