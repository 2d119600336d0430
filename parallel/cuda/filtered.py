"""Draws from what top-k, top-p and min-p leave of a row, without sorting it.

S rows, V vocabulary rows, X logits of a tile.

Tier 0 (`sampling/filters.py`) sorts candidates by (logit, then lower index); each filter keeps a prefix of that order,
so together they keep the shortest of the three, and the draw is the inverse CDF over it in that order. Here the order
is never made. The logit at which a prefix ends is found by bisection: one pass over the row tells how many tokens lie
at or above a logit and how much weight they have. Logits are compared as integers of the same order, and the ends of
the interval always move on to a logit that occurs, so that a row whose logits came from bfloat16 takes some 12 passes
and no row more than 32. Sums are taken in the same order whatever else is in the batch.
"""

import triton
import triton.language as tl
from torch import Tensor

from parallel.cuda.choose import RowSampling

_TILE = 4096
"""Logits that one pass takes at a time; 8 for each of 512 threads. Not measured yet."""


def draw_filtered(logits_SV: Tensor, best_logit_S: Tensor, rows: RowSampling, index_S: Tensor) -> None:
    """Overwrite `index_S` (int64) of the rows that have a temperature and a filter; others keep what they have.

    `logits_SV` is the whole vocabulary, `best_logit_S` its largest logits. A filter never leaves fewer than one token.
    Rows whose best logit is not finite are left alone.
    """
    num_rows, width = logits_SV.shape
    if num_rows:
        _draw_filtered[(num_rows,)](
            logits_SV,
            best_logit_S,
            *rows,
            index_S,
            width,
            TILE_X=min(_TILE, max(16, triton.next_power_of_2(width))),
            num_warps=16,
        )


@triton.jit
def _draw_filtered(
    logits: tl.tensor,
    best_logits: tl.tensor,
    temperatures: tl.tensor,
    uniforms: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    indices: tl.tensor,
    width: int,
    TILE_X: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    best, temperature = tl.load(best_logits + row), tl.load(temperatures + row)
    top_k, top_p, min_p = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)
    has_filter = (top_k < width) | (top_p < 1) | (min_p > 0)
    if (temperature <= 0) | (has_filter == 0) | ((tl.abs(best) < float("inf")) == 0):
        return
    x = logits + row.to(tl.int64) * width
    # Everything that has a probability: above the key of -inf.
    _, mass, lowest, _ = _measure(x, -2139095040, best, temperature, 0.0, width, TILE_X)
    if top_k < width:
        most = top_k.to(tl.float64)
        key, above, mass_above, upto = _bisect(x, lowest, best, temperature, most - 1, width, TILE_X, True)
        mass = mass_above + (tl.minimum(most, upto) - above) * _weight_of(key, best, temperature)
    kept = mass
    if top_p < 1:
        wanted = top_p * mass
        key, above, mass_above, upto = _bisect(x, lowest, best, temperature, wanted, width, TILE_X, False)
        weight = _weight_of(key, best, temperature)
        # Equal logits are kept one by one, as long as what comes before them is less than top-p's share.
        num_equal = tl.minimum(tl.ceil((wanted - mass_above) / weight), upto - above)
        kept = tl.minimum(kept, mass_above + num_equal * weight)
    if min_p > 0:
        _, heavy, _, _ = _measure(x, -2139095040, best, temperature, min_p, width, TILE_X)
        kept = tl.minimum(kept, heavy)
    kept = tl.maximum(kept, 1.0)
    target = tl.load(uniforms + row) * kept
    key, above, mass_above, upto = _bisect(x, lowest, best, temperature, target, width, TILE_X, False)
    nth = ((target - mass_above) / _weight_of(key, best, temperature)).to(tl.int64)
    nth = tl.maximum(tl.minimum(nth, (upto - above).to(tl.int64) - 1), 0)
    tl.store(indices + row, _place_of(x, key, nth, width, TILE_X))


@triton.jit
def _bisect(
    x: tl.tensor,
    lowest: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    bound: tl.tensor,
    width: tl.tensor,
    TILE_X: tl.constexpr,
    IS_COUNT: tl.constexpr,
) -> tl.tensor:
    """Return the largest key at or above which more than `bound` lies, by count or by weight.

    Then what lies above that key, as count and as weight, and the count of what lies at it or above; all float64.
    """
    low, high = lowest, _key_of(best).to(tl.int64) + 1
    above = 0.0 * bound
    mass_above = above
    upto = above
    # Keys at `low` and above are enough, keys at `high` and above are not.
    while high - low > 1:
        middle = low + (high - low) // 2
        count, mass, next_key, previous_key = _measure(x, middle.to(tl.int32), best, temperature, 0.0, width, TILE_X)
        measured = count if IS_COUNT else mass
        if measured > bound:
            low = next_key
            upto = count
        else:
            high = tl.maximum(previous_key, low) + 1
            above = count
            mass_above = mass
    if upto == 0:
        # Not even the lowest key was ever enough: rounding. Then all that is left is taken to be there.
        count, _, _, _ = _measure(x, low.to(tl.int32), best, temperature, 0.0, width, TILE_X)
        upto = count
    return low, above, mass_above, upto


@triton.jit
def _measure(
    x: tl.tensor,
    lowest_key: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    least_weight: tl.tensor,
    width: tl.tensor,
    TILE_X: tl.constexpr,
) -> tl.tensor:
    """Return count and weight of the tokens at or above a key and a weight, the least such key, and the next below.

    Count and weight are float64, keys int64. Without a token at or above, the least key is 2^31 - 1; without one below,
    the next below is -2^31.
    """
    count_X = tl.zeros((TILE_X,), tl.int32)
    mass_X = tl.zeros((TILE_X,), tl.float32)
    next_X = tl.full((TILE_X,), 2147483647, tl.int32)
    previous_X = tl.full((TILE_X,), -2147483648, tl.int32)
    for first in range(0, width, TILE_X):
        index_X = first + tl.arange(0, TILE_X)
        x_X = tl.load(x + index_X, mask=index_X < width, other=float("-inf"))
        key_X = _key_of(x_X)
        weight_X = tl.exp((x_X - best) / temperature)
        is_in_X = (key_X >= lowest_key) & (weight_X >= least_weight) & (x_X > float("-inf"))
        count_X += is_in_X.to(tl.int32)
        mass_X += tl.where(is_in_X, weight_X, 0.0)
        next_X = tl.minimum(next_X, tl.where(is_in_X, key_X, 2147483647))
        previous_X = tl.maximum(previous_X, tl.where(key_X < lowest_key, key_X, -2147483648))
    count, mass = tl.sum(count_X, 0).to(tl.float64), tl.sum(mass_X.to(tl.float64), 0)
    return count, mass, tl.min(next_X, 0).to(tl.int64), tl.max(previous_X, 0).to(tl.int64)


@triton.jit
def _place_of(x: tl.tensor, key: tl.tensor, nth: tl.tensor, width: tl.tensor, TILE_X: tl.constexpr) -> tl.tensor:
    """Return the index of the nth logit, counted from 0, that has the key."""
    seen = nth * 0
    place = nth * 0
    for first in range(0, width, TILE_X):
        index_X = first + tl.arange(0, TILE_X)
        x_X = tl.load(x + index_X, mask=index_X < width, other=float("-inf"))
        is_equal_X = ((_key_of(x_X) == key) & (index_X < width)).to(tl.int32)
        rank_X = seen + tl.cumsum(is_equal_X, 0) - 1
        place += tl.sum(tl.where((is_equal_X == 1) & (rank_X == nth), index_X, 0), 0)
        seen += tl.sum(is_equal_X, 0)
    return place


@triton.jit
def _key_of(x: tl.tensor) -> tl.tensor:
    """Return int32 in the order of the logits; -0 is 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _weight_of(key: tl.tensor, best: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """Return the weight of a logit with this key, float64; never 0, so that it may divide."""
    key = key.to(tl.int32)
    x = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.maximum(tl.exp((x - best) / temperature), 1e-38).to(tl.float64)
