"""SGLang's cache-aware router: the longest match while request counts look balanced, else the fewest requests.

sgl-router (now Shepherd Model Gateway) policies/cache_aware.rs with its former defaults 64, 1.5 and 0.3. The switch
between two modes is what it suffers from: out of balance it forgets the caches, in balance it forgets the load, and on
a miss it takes the smallest tree, however busy (sglang issues 14305, 32195).
"""

from collections.abc import Sequence
from random import Random

from cluster.routing.base import GroupView, RoutingRequest
from cluster.routing.baselines.routed_prefixes import RoutedPrefixes


class SGLangCacheAware:
    """Affinity or balance, never both."""

    def __init__(
        self, rng: Random, max_difference: int = 64, max_ratio: float = 1.5, cache_threshold: float = 0.3
    ) -> None:
        """Out of balance: more than `max_difference` requests and `max_ratio` times between most and fewest."""
        self._rng = rng
        self._max_difference = max_difference
        self._max_ratio = max_ratio
        self._cache_threshold = cache_threshold
        self._routed = RoutedPrefixes()

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of the fewest requests, of a best match, or of the smallest tree."""
        picked = self._pick(groups, request)
        self._routed.place(picked, request)
        return picked.group_id

    def _pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> GroupView:
        counts = [group.num_requests for group in groups]
        fewest, most = min(counts), max(counts)
        if most - fewest > self._max_difference and most > self._max_ratio * fewest:
            return groups[counts.index(fewest)]
        best = max(group.num_cached_tokens for group in groups)
        if best > self._cache_threshold * request.num_tokens:
            matches = [group for group in groups if group.num_cached_tokens == best]
            return min(matches, key=lambda group: group.num_requests)
        sizes = [self._routed.size(group) for group in groups]
        smallest = min(sizes)
        return self._rng.choice([group for group, size in zip(groups, sizes, strict=True) if size == smallest])
