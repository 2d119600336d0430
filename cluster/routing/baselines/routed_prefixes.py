"""How much each group has been sent so far: the size of the tree that SGLang's and Ray's routers keep for it."""

import itertools

from cluster.routing.base import GroupView, RoutingRequest
from cluster.routing.cache_model import CacheModel
from engine.prefix_keys import SPAN_TOKENS

DEFAULT_MAX_KV_TOKENS = 500_000


class RoutedPrefixes:
    """A cache model for each group, fed with every prompt that was routed there."""

    def __init__(self) -> None:
        self._models: dict[str, CacheModel] = {}
        self._nameless = itertools.count(-1, -1)

    def size(self, group: GroupView) -> int:
        """Return how many spans a group's tree holds."""
        model = self._models.get(group.group_id)
        return len(model) if model is not None else 0

    def place(self, group: GroupView, request: RoutingRequest) -> None:
        """Grow the tree of the group that was picked; a prompt without keys shares nothing with any other."""
        model = self._models.get(group.group_id)
        if model is None:
            max_tokens = group.max_kv_tokens or DEFAULT_MAX_KV_TOKENS
            model = self._models[group.group_id] = CacheModel(max_tokens // SPAN_TOKENS)
        num_spans = request.num_tokens // SPAN_TOKENS
        model.place(request.prefix_keys or list(itertools.islice(self._nameless, num_spans)))
