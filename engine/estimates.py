"""What requests have been like lately, and so what the next one will cost.

Written by the engine thread, read by any.
"""

from engine.request import GenerationRequest
from engine.step_costs import StepCosts

_MEMORY = 64
"""Requests over which a mean is taken, about."""
_WAIT_MEMORY = 16
"""Waits, of which there are few when the ranks become slow."""
_FIRST_OUTPUT_TOKENS = 256
"""Expected of a request before any has ended."""
_TRUST = 8
"""Predictions count as right at first, as if so many waits of a second had been."""
_LARGEST_BIAS = 4.0
_SHORTEST_S = 1e-3


class MovingMean:
    """The mean of the first values, and then of about the last `memory`, recent ones counting more."""

    def __init__(self, first: float, weight: int = 0, memory: int = _MEMORY) -> None:
        self.value = first
        """Before anything was added: the expectation given, which counts like `weight` values."""
        self._count = weight
        self._memory = memory

    def add(self, value: float) -> None:
        """Take in one value."""
        self._count = min(self._count + 1, self._memory)
        self.value += (value - self.value) / self._count


class Estimates:
    """Expected tokens and seconds. Seconds are unknown (None) until the costs of a step are."""

    def __init__(self) -> None:
        self.step_costs: StepCosts | None = None
        """As learned so far; set by whoever learns them."""
        self._output_tokens = MovingMean(_FIRST_OUTPUT_TOKENS)
        self._context_tokens = MovingMean(0.0)
        self._uncached_share = MovingMean(1.0)
        self._predicted_wait_s = MovingMean(1.0, _TRUST, _WAIT_MEMORY)
        self._actual_wait_s = MovingMean(1.0, _TRUST, _WAIT_MEMORY)

    # What happened

    def note_start(self, num_tokens: int, num_cached_tokens: int) -> None:
        """A request began to run and found that much of it in the prefix cache."""
        self._uncached_share.add(1.0 - num_cached_tokens / num_tokens)

    def note_wait(self, predicted_s: float, actual_s: float) -> None:
        """A request has got its first token. `predicted_s`: as `wait_s` was before it was corrected for its bias."""
        self._predicted_wait_s.add(predicted_s)
        self._actual_wait_s.add(actual_s)

    def note_end(self, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """A request came to the end that its model or its caller wanted."""
        self._output_tokens.add(num_output_tokens)
        # A decode attends to the prompt and, taken over all of them, to half of the output.
        self._context_tokens.add(num_prompt_tokens + num_output_tokens / 2)

    # What is expected

    @property
    def mean_output_tokens(self) -> float:
        """Tokens that a request generates."""
        return self._output_tokens.value

    def uncached_tokens(self, request: GenerationRequest) -> int:
        """Return how many of its tokens will have to be prefilled."""
        return round(len(request.token_ids) * self._uncached_share.value)

    def output_tokens(self, request: GenerationRequest, num_left: int) -> int:
        """Return how many tokens it will generate, at most `num_left`."""
        return num_left if request.sampling.ignore_eos else min(num_left, max(1, round(self._output_tokens.value)))

    def work_s(self, num_uncached_tokens: int, num_output_tokens: float, num_running: int) -> float | None:
        """Return the time that a group with `num_running` busy rows takes for so much of its work."""
        costs = self.step_costs
        if costs is None:
            return None
        token_s = costs.base_s / max(1, num_running) + costs.sequence_s + costs.kv_token_s * self._context_tokens.value
        return num_uncached_tokens * costs.prefill_token_s + num_output_tokens * token_s

    def least_s(self, request: GenerationRequest, num_left: int) -> float:
        """Return the least time from a request's start to its end: alone, and with as little output as it allows."""
        costs = self.step_costs
        if costs is None:
            return 0.0
        sampling = request.sampling
        num_output = num_left if sampling.ignore_eos else min(num_left, max(1, sampling.min_tokens))
        return self.uncached_tokens(request) * costs.prefill_token_s + num_output * (costs.base_s + costs.sequence_s)

    def unbiased_s(self, wait_s: float) -> float:
        """Return a predicted wait, corrected by how such predictions have turned out."""
        # Of means, not the mean of ratios: a wait of some milliseconds may well be off by a factor.
        bias = self._actual_wait_s.value / max(self._predicted_wait_s.value, _SHORTEST_S)
        return wait_s * min(max(bias, 1 / _LARGEST_BIAS), _LARGEST_BIAS)
