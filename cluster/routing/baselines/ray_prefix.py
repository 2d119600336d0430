"""Ray Serve LLM's PrefixCacheAffinityRouter: the longest match; on a miss the smallest tree, whatever its load.

ray/llm/_internal/serve/routing_policies/prefix_aware: the code's default never calls the load imbalanced (its
documentation says from ten requests on); then it is the better of two at random.
"""

from collections.abc import Sequence
from random import Random

from cluster.routing.base import GroupView, RoutingRequest
from cluster.routing.baselines.power_of_two import PowerOfTwo
from cluster.routing.baselines.routed_prefixes import RoutedPrefixes


class RayPrefix:
    """Affinity first, load only past a threshold."""

    def __init__(self, rng: Random, max_imbalance: float = float("inf"), min_match: float = 0.1) -> None:
        """`max_imbalance`: requests between most and fewest; `min_match`: share of the prompt that makes a match."""
        self._rng = rng
        self._max_imbalance = max_imbalance
        self._min_match = min_match
        self._balanced = PowerOfTwo(rng)
        self._routed = RoutedPrefixes()

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of a best match, of the smallest tree, or of the better of two."""
        counts = [group.num_requests for group in groups]
        if max(counts) - min(counts) > self._max_imbalance:
            picked_id = self._balanced.pick(groups, request)
            picked = next(group for group in groups if group.group_id == picked_id)
        else:
            picked = self._rng.choice(self._favourites(groups, request))
        self._routed.place(picked, request)
        return picked.group_id

    def _favourites(self, groups: Sequence[GroupView], request: RoutingRequest) -> list[GroupView]:
        best = max(group.num_cached_tokens for group in groups)
        if best > self._min_match * request.num_tokens:
            return [group for group in groups if group.num_cached_tokens == best]
        sizes = [self._routed.size(group) for group in groups]
        return [group for group, size in zip(groups, sizes, strict=True) if size == min(sizes)]
