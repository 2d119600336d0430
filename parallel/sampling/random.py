"""Random numbers as a function of (seed, position): the same alone, in any batch, on any device and after a resume.

SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014, fig. 17): the stream of a
seed starts at the mixed seed, and its position-th output needs none of those before it.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11 = (np.uint64(bits) for bits in (30, 27, 31, 11))
_ULP = 2.0**-53


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each (seed, position), elementwise. Integer arithmetic wraps, so it is exact."""
    counters = (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN_GAMMA
    return (_mix(_mix(seeds) + counters) >> _SHIFT_11).astype(np.float64) * _ULP


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> _SHIFT_30)) * _MULTIPLIER_1
    x = (x ^ (x >> _SHIFT_27)) * _MULTIPLIER_2
    return x ^ (x >> _SHIFT_31)
