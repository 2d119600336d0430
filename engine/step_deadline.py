"""How long to wait for a step before the ranks count as hung."""

from collections import deque

_WINDOW = 512
"""Recent steps remembered per size."""
_MIN_SAMPLES = 128
"""Fewer steps of a size say nothing about its slowest percent."""
_RECOMPUTE_EVERY = 64
_SLACK = 20.0
_FLOOR_S = 4.0
"""A second without a link delays a step by more than that; frozen ranks are found by their pulses, sooner."""


class StepDeadline:
    """`max(4 s, 20 x p99)` of recent steps of about the same number of tokens, never more than the configured limit.

    Steps are compared within powers of two of their token count, because a prefill step may take a hundred times as
    long as a decode step. Sizes seldom seen keep the configured limit.
    """

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self._recent: dict[int, deque[float]] = {}
        self._limits: dict[int, float] = {}
        self._num_new: dict[int, int] = {}

    def limit_s(self, num_tokens: int) -> float:
        """Return seconds to wait for a step of `num_tokens`."""
        return self._limits.get(num_tokens.bit_length(), self._max_s)

    def record(self, num_tokens: int, seconds: float) -> None:
        """Learn from a step that returned."""
        size = num_tokens.bit_length()
        recent = self._recent.setdefault(size, deque(maxlen=_WINDOW))
        recent.append(seconds)
        self._num_new[size] = self._num_new.get(size, 0) + 1
        if len(recent) >= _MIN_SAMPLES and self._num_new[size] >= _RECOMPUTE_EVERY:
            self._num_new[size] = 0
            p99 = sorted(recent)[int(0.99 * (len(recent) - 1))]
            self._limits[size] = min(self._max_s, max(_FLOOR_S, _SLACK * p99))
