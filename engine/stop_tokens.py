"""Which tokens may end a running request, asked for a whole step at once."""

from collections.abc import Iterable, Sequence


class StopTokens:
    """Counts, for each token that ends some running request, how many it ends."""

    def __init__(self) -> None:
        self._num_requests: dict[int, int] = {}

    def add(self, stop_ids: Iterable[int]) -> None:
        """Look out for the tokens that end one more request."""
        for token_id in stop_ids:
            self._num_requests[token_id] = self._num_requests.get(token_id, 0) + 1

    def remove(self, stop_ids: Iterable[int]) -> None:
        """Undo one `add`."""
        for token_id in stop_ids:
            self._num_requests[token_id] -= 1
            if not self._num_requests[token_id]:
                del self._num_requests[token_id]

    def suspects(self, token_ids: Sequence[int]) -> list[int]:
        """Return the places of the tokens that end some request, though perhaps not the one that sampled it."""
        if self._num_requests.keys().isdisjoint(token_ids):
            return []
        return [place for place, token_id in enumerate(token_ids) if token_id in self._num_requests]
