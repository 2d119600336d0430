"""How long outputs usually are, so that a request can be planned for before anybody knows."""

PRIOR_TOKENS = 256.0
"""Of a model that has finished nothing yet; about the mean of public chat traces (research: 200 to 350)."""

MIN_WEIGHT = 0.01
"""Of the latest output: the mean follows the last hundred."""


class OutputLengths:
    """The mean output length of each model: of all its outputs at first, of about the last hundred later."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def learn(self, model: str, num_tokens: int) -> None:
        """Take note of a finished output."""
        count = self._counts.get(model, 0) + 1
        mean = self._means.get(model, 0.0)
        self._counts[model] = count
        self._means[model] = mean + (num_tokens - mean) * max(MIN_WEIGHT, 1 / count)

    def expect(self, model: str, max_tokens: int) -> float:
        """Return how many tokens will likely come of the `max_tokens` that are allowed."""
        return min(self._means.get(model, PRIOR_TOKENS), max_tokens)
