"""Learns what a step costs from the steps themselves: base, prefill tokens, sequences, KV tokens.

Least squares with forgetting. Errors count relative to the step's time, so that decode steps matter beside prefill
steps a hundred times as long, and a step that took far too long (a page fault, a neighbour) hardly matters at all. No
cost is ever negative. What recent steps cannot tell apart, such as base and sequences while the batch stays the same,
remains as it was believed to be.
"""

import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

from engine.step_costs import StepCosts

MEMORY_STEPS = 2000
"""Older steps count for less than a third, twice as old ones for a seventh."""
MIN_STEPS = 32
"""Fewer say nothing."""

_MAX_UNREAD = 4096
_NUM_COSTS = 4
_STIFFNESS = 1e-3
"""How much the former belief counts beside what the steps say."""
_LEAST_SHARE = 0.5
"""A step counts as if it had taken at least this share of the time believed, lest one that
seemed instant outweigh all others."""

_Sample = tuple[float, int, int, int, float]
_Matrix = NDArray[np.float64]


class StepCostModel:
    """`record` is for the engine thread and costs next to nothing; the work is done by whoever asks for `costs`."""

    def __init__(self, memory_steps: int = MEMORY_STEPS) -> None:
        self._decay = 1.0 - 1.0 / memory_steps
        self._unread: deque[_Sample] = deque(maxlen=_MAX_UNREAD)
        # Guards all below.
        self._lock = threading.Lock()
        self._num_steps = 0
        self._moments: _Matrix = np.zeros((_NUM_COSTS, _NUM_COSTS))
        self._products: _Matrix = np.zeros(_NUM_COSTS)
        self._costs: _Matrix = np.zeros(_NUM_COSTS)

    def record(self, num_prefill_tokens: int, num_sequences: int, num_kv_tokens: int, seconds: float) -> None:
        """Remember a step: what it computed, and how long that took."""
        self._unread.append((1.0, num_prefill_tokens, num_sequences, num_kv_tokens, seconds))

    def costs(self) -> StepCosts | None:
        """Return what is believed now, None until there were enough steps; any thread, a fraction of a millisecond."""
        with self._lock:
            # The engine thread appends meanwhile; single deque operations are atomic.
            samples = [self._unread.popleft() for _ in range(len(self._unread))]
            samples = [sample for sample in samples if sample[-1] > 0.0]
            if samples:
                self._take_in(np.array(samples))
            if self._num_steps < MIN_STEPS:
                return None
            return StepCosts(*self._costs.tolist())

    def _take_in(self, samples: _Matrix) -> None:
        work, seconds = samples[:, :_NUM_COSTS], samples[:, _NUM_COSTS]
        ages = np.arange(len(samples))[::-1]
        counted_s = np.maximum(seconds, _LEAST_SHARE * (work @ self._costs))
        if self._num_steps == 0:
            counted_s = np.maximum(counted_s, _LEAST_SHARE * float(np.median(seconds)))
        weighted = work * (self._decay**ages / counted_s**2)[:, np.newaxis]
        forgotten = self._decay ** len(samples)
        self._moments = forgotten * self._moments + weighted.T @ work
        self._products = forgotten * self._products + weighted.T @ seconds
        self._num_steps += len(samples)
        self._costs = self._solve()

    def _solve(self) -> _Matrix:
        """Return the costs that fit best and are not negative: what would be is nothing, the rest fits again."""
        # In units in which every kind of work has been done equally much.
        units = np.sqrt(np.diag(self._moments))
        units[units == 0.0] = 1.0
        moments = self._moments / np.outer(units, units) + _STIFFNESS * np.eye(_NUM_COSTS)
        products = self._products / units + _STIFFNESS * self._costs * units
        costs = np.zeros(_NUM_COSTS)
        free = list(range(_NUM_COSTS))
        while free:
            found = np.linalg.solve(moments[np.ix_(free, free)], products[free])
            if found.min() >= 0.0:
                costs[free] = found
                break
            del free[int(found.argmin())]
        return costs / units
