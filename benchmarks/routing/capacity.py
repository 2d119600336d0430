"""The largest request rate that a router sustains, found on one grid of rates so that capacities compare exactly."""

import math
from collections.abc import Callable

GRID = 1.02
"""Each rate of the grid over the one before it: the resolution of a capacity. The grid goes through 1."""

_FIRST_STRIDE = 4


def capacity(is_sustained: Callable[[float], bool], guess_per_s: float) -> float:
    """Return the largest rate of the grid that is sustained, if a higher rate is never easier.

    Strides of growing length from the guess until the answer lies between two rates, then halving: a good guess costs
    two runs and the halving, a bad one a few more.
    """

    def holds(exponent: int) -> bool:
        return is_sustained(GRID**exponent)

    low, high = _bracket(holds, round(math.log(guess_per_s, GRID)))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return GRID**low


def _bracket(holds: Callable[[int], bool], here: int) -> tuple[int, int]:
    """Return an exponent that holds and a larger one that does not."""
    stride = _FIRST_STRIDE
    if holds(here):
        while holds(here + stride):
            here, stride = here + stride, 2 * stride
        return here, here + stride
    while not holds(here - stride):
        here, stride = here - stride, 2 * stride
    return here - stride, here
