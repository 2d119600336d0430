"""What groups would hold in their prefix caches after what was sent there, told to a router as if they said it."""

from collections.abc import Sequence

from cluster.routing.cache_model import CacheModel
from cluster.routing.router import Router
from engine.prefix_feed import PrefixNews


class RoutingHistory:
    """A cache model for each group. For groups that do not tell what they hold; of others it would only be a guess."""

    def __init__(self, router: Router, max_cached_keys: int) -> None:
        """`max_cached_keys`: as many spans of 64 tokens as a group has KV memory for."""
        self._router = router
        self._max_cached_keys = max_cached_keys
        self._models: dict[str, CacheModel] = {}
        self._sequences: dict[str, int] = {}

    def find(self, group_id: str) -> None:
        """Begin with an empty cache, so that prompts on their way to the group count. Idempotent."""
        if group_id not in self._models:
            self._models[group_id] = CacheModel(self._max_cached_keys)
            self._sequences[group_id] = 0
            self._router.note_prefixes(group_id, PrefixNews(0, 0, True, [], []))

    def place(self, group_id: str, keys: Sequence[int]) -> None:
        """Have a prompt in the group's cache: to be called when the group has computed it."""
        self.find(group_id)
        stored, removed = self._models[group_id].place(keys)
        self._sequences[group_id] += 1
        self._router.note_prefixes(group_id, PrefixNews(0, self._sequences[group_id], False, stored, removed))

    def forget(self, group_id: str) -> None:
        """Drop a group that is gone. Idempotent."""
        self._models.pop(group_id, None)
        self._sequences.pop(group_id, None)
