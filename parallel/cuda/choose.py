"""The most likely token of each row, or one drawn by its temperature, in one pass over the logits.

S rows, V vocabulary rows on this rank, C chunks of a row.

Programs read a chunk of a row each and leave three numbers: the largest logit, where it first occurs, and the sum of
exp((logit - largest) / temperature). One program a row puts them together, and for a draw reads the one chunk again
that the random number falls into. The draw is the inverse CDF in token order, as tier 0 does it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK_WIDTH = 4096
"""16 KiB of logits; 38 chunks of a vocabulary of 152 k. Not measured yet."""


class RowSampling(NamedTuple):
    """How rows choose, on the device. Whoever replays a graph rewrites the tensors from step to step."""

    temperature_S: Tensor
    """float32; 0 takes the most likely token."""
    uniform_S: Tensor
    """float64, the number of the row's seed and of the position of the token to be chosen, from `sampling/random.py` or
    `cuda/random.py`."""
    top_k_S: Tensor
    """int64; as large as the vocabulary or larger is none."""
    top_p_S: Tensor
    """float64; 1 is none."""
    min_p_S: Tensor
    """float64; 0 is none."""


class Chunks(NamedTuple):
    """What a row's chunks were found to hold."""

    logit_SC: Tensor
    """Largest logit; +inf if there is a NaN or +inf."""
    index_SC: Tensor
    """int32, where it first occurs in the row."""
    mass_SC: Tensor
    """Sum of exp((logit - largest) / temperature)."""


class Joined(NamedTuple):
    """A row's most likely token in this rank's part of the vocabulary."""

    logit_S: Tensor
    """float32, +inf if there is a NaN or +inf."""
    index_S: Tensor
    """int64, the lowest of equals."""
    is_sound_S: Tensor
    """False for a row with NaN, +inf, or nothing but -inf."""
    mass_S: Tensor
    """float64, sum of exp((logit - most likely logit) / temperature)."""


def read_chunks(logits_SV: Tensor, temperature_S: Tensor | None) -> Chunks:
    """Return the chunks of float32 logits; without a temperature masses mean nothing. 0 counts as temperature 1."""
    num_rows, width = logits_SV.shape
    num_chunks = max(1, triton.cdiv(width, CHUNK_WIDTH))
    shape, device = (num_rows, num_chunks), logits_SV.device
    chunks = Chunks(*(torch.empty(shape, dtype=dtype, device=device) for dtype in _CHUNK_DTYPES))
    if num_rows:
        _read_chunk[(num_rows, num_chunks)](
            logits_SV,
            logits_SV if temperature_S is None else temperature_S,
            *chunks,
            width,
            num_chunks,
            TILE_V=CHUNK_WIDTH,
            HAS_TEMPERATURE=temperature_S is not None,
            num_warps=8,
        )
    return chunks


def join_chunks(chunks: Chunks, temperature_S: Tensor | None) -> Joined:
    """Return the rows' most likely tokens; without a temperature masses mean nothing."""
    num_rows, num_chunks = chunks.logit_SC.shape
    device = chunks.logit_SC.device
    joined = Joined(*(torch.empty(num_rows, dtype=dtype, device=device) for dtype in _JOINED_DTYPES))
    if num_rows:
        _join_chunks[(num_rows,)](
            *chunks,
            chunks.logit_SC if temperature_S is None else temperature_S,
            *joined,
            num_chunks,
            TILE_C=triton.next_power_of_2(num_chunks),
            HAS_TEMPERATURE=temperature_S is not None,
            num_warps=4,
        )
    return joined


def draw(logits_SV: Tensor, chunks: Chunks, joined: Joined, temperature_S: Tensor, target_S: Tensor) -> Tensor:
    """Return int64 index_S, the first whose running sum of exp((logit - most likely) / temperature) exceeds the target.

    A target outside the row's mass gives its first or last index with a weight.
    """
    num_rows, width = logits_SV.shape
    index_S = torch.empty(num_rows, dtype=torch.int64, device=logits_SV.device)
    num_chunks = chunks.logit_SC.shape[1]
    if num_rows:
        _draw[(num_rows,)](
            logits_SV,
            chunks.logit_SC,
            chunks.mass_SC,
            joined.logit_S,
            temperature_S,
            target_S,
            index_S,
            width,
            num_chunks,
            TILE_C=triton.next_power_of_2(num_chunks),
            TILE_V=CHUNK_WIDTH,
            num_warps=8,
        )
    return index_S


def choose(logits_SV: Tensor, rows: RowSampling) -> Joined:
    """Return the joined rows with the chosen index for `index_S`, where the whole vocabulary is on this rank.

    Temperature 0 takes the most likely token, others draw; filters are not looked at. Two launches.
    """
    num_rows, width = logits_SV.shape
    chunks = read_chunks(logits_SV, rows.temperature_S)
    chosen = Joined(*(torch.empty(num_rows, dtype=dtype, device=logits_SV.device) for dtype in _JOINED_DTYPES))
    num_chunks = chunks.logit_SC.shape[1]
    if num_rows:
        _choose[(num_rows,)](
            logits_SV,
            *chunks,
            rows.temperature_S,
            rows.uniform_S,
            *chosen,
            width,
            num_chunks,
            TILE_C=triton.next_power_of_2(num_chunks),
            TILE_V=CHUNK_WIDTH,
            num_warps=8,
        )
    return chosen


_CHUNK_DTYPES = (torch.float32, torch.int32, torch.float32)
_JOINED_DTYPES = (torch.float32, torch.int64, torch.bool, torch.float64)


@triton.jit
def _read_chunk(
    logits: tl.tensor,
    temperatures: tl.tensor,
    chunk_logits: tl.tensor,
    chunk_indices: tl.tensor,
    chunk_masses: tl.tensor,
    width: int,
    num_chunks: int,
    TILE_V: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
) -> None:
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index_V = chunk * TILE_V + tl.arange(0, TILE_V)
    x_V = tl.load(logits + row * width + index_V, mask=index_V < width, other=float("-inf"))
    # A NaN counts as +inf, so that the largest logit alone says whether the row is sound.
    x_V = tl.where(x_V == x_V, x_V, float("inf"))
    largest = tl.max(x_V, 0)
    first = tl.min(tl.where(x_V == largest, index_V, 2147483647), 0)
    tl.store(chunk_logits + row * num_chunks + chunk, largest)
    tl.store(chunk_indices + row * num_chunks + chunk, first)
    if HAS_TEMPERATURE:
        weight_V = _weights(x_V, largest, _positive(tl.load(temperatures + row)))
        tl.store(chunk_masses + row * num_chunks + chunk, tl.sum(weight_V, 0))


@triton.jit
def _join_chunks(
    chunk_logits: tl.tensor,
    chunk_indices: tl.tensor,
    chunk_masses: tl.tensor,
    temperatures: tl.tensor,
    best_logits: tl.tensor,
    best_indices: tl.tensor,
    is_sound: tl.tensor,
    masses: tl.tensor,
    num_chunks: int,
    TILE_C: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    logit_C, best, index = _best_of(row, chunk_logits, chunk_indices, num_chunks, TILE_C)
    tl.store(best_logits + row, best)
    tl.store(best_indices + row, index)
    tl.store(is_sound + row, tl.abs(best) < float("inf"))
    if HAS_TEMPERATURE:
        mass_C = _masses(row, logit_C, best, chunk_masses, temperatures, num_chunks, TILE_C)
        tl.store(masses + row, tl.sum(mass_C, 0))


@triton.jit
def _draw(
    logits: tl.tensor,
    chunk_logits: tl.tensor,
    chunk_masses: tl.tensor,
    best_logits: tl.tensor,
    temperatures: tl.tensor,
    targets: tl.tensor,
    indices: tl.tensor,
    width: int,
    num_chunks: int,
    TILE_C: tl.constexpr,
    TILE_V: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    chunk_C, best = tl.arange(0, TILE_C), tl.load(best_logits + row)
    at_C = chunk_logits + row * num_chunks + chunk_C
    logit_C = tl.load(at_C, mask=chunk_C < num_chunks, other=float("-inf"))
    mass_C = _masses(row, logit_C, best, chunk_masses, temperatures, num_chunks, TILE_C)
    temperature = _positive(tl.load(temperatures + row))
    index = _pick(logits, row, best, temperature, mass_C, tl.load(targets + row), width, TILE_C, TILE_V)
    tl.store(indices + row, index)


@triton.jit
def _choose(
    logits: tl.tensor,
    chunk_logits: tl.tensor,
    chunk_indices: tl.tensor,
    chunk_masses: tl.tensor,
    temperatures: tl.tensor,
    uniforms: tl.tensor,
    best_logits: tl.tensor,
    indices: tl.tensor,
    is_sound: tl.tensor,
    masses: tl.tensor,
    width: int,
    num_chunks: int,
    TILE_C: tl.constexpr,
    TILE_V: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    logit_C, best, index = _best_of(row, chunk_logits, chunk_indices, num_chunks, TILE_C)
    mass_C = _masses(row, logit_C, best, chunk_masses, temperatures, num_chunks, TILE_C)
    mass, temperature = tl.sum(mass_C, 0), tl.load(temperatures + row)
    tl.store(best_logits + row, best)
    tl.store(is_sound + row, tl.abs(best) < float("inf"))
    tl.store(masses + row, mass)
    if temperature > 0:
        target = tl.load(uniforms + row) * mass
        index = _pick(logits, row, best, temperature, mass_C, target, width, TILE_C, TILE_V)
    tl.store(indices + row, index)


@triton.jit
def _best_of(
    row: tl.tensor, chunk_logits: tl.tensor, chunk_indices: tl.tensor, num_chunks: tl.tensor, TILE_C: tl.constexpr
) -> tl.tensor:
    """Return the chunks' largest logits, the largest of them, and the lowest index where it occurs."""
    chunk_C = tl.arange(0, TILE_C)
    at_C, is_chunk_C = row * num_chunks + chunk_C, chunk_C < num_chunks
    logit_C = tl.load(chunk_logits + at_C, mask=is_chunk_C, other=float("-inf"))
    index_C = tl.load(chunk_indices + at_C, mask=is_chunk_C, other=2147483647)
    best = tl.max(logit_C, 0)
    return logit_C, best, tl.min(tl.where(logit_C == best, index_C, 2147483647), 0).to(tl.int64)


@triton.jit
def _masses(
    row: tl.tensor,
    logit_C: tl.tensor,
    best: tl.tensor,
    chunk_masses: tl.tensor,
    temperatures: tl.tensor,
    num_chunks: tl.tensor,
    TILE_C: tl.constexpr,
) -> tl.tensor:
    """Return the chunks' masses relative to the row's best logit, float64."""
    chunk_C = tl.arange(0, TILE_C)
    mass_C = tl.load(chunk_masses + row * num_chunks + chunk_C, mask=chunk_C < num_chunks, other=0.0).to(tl.float64)
    share_C = _weights(logit_C, best, _positive(tl.load(temperatures + row))).to(tl.float64)
    # A chunk of nothing but -inf has no mass; 0 * NaN would spread.
    return tl.where(logit_C > float("-inf"), mass_C * share_C, 0.0)


@triton.jit
def _pick(
    logits: tl.tensor,
    row: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    mass_C: tl.tensor,
    target: tl.tensor,
    width: tl.tensor,
    TILE_C: tl.constexpr,
    TILE_V: tl.constexpr,
) -> tl.tensor:
    """Return the index where the running sum of weights first exceeds the target."""
    chunk, before = _first_over(mass_C, target, TILE_C)
    index_V = chunk * TILE_V + tl.arange(0, TILE_V)
    x_V = tl.load(logits + row.to(tl.int64) * width + index_V, mask=index_V < width, other=float("-inf"))
    weight_V = _weights(x_V, best, temperature).to(tl.float64)
    place, _ = _first_over(weight_V, target - before, TILE_V)
    return (chunk * TILE_V + place).to(tl.int64)


@triton.jit
def _first_over(weight_X: tl.tensor, target: tl.tensor, TILE_X: tl.constexpr) -> tl.tensor:
    """Return the first place whose running sum exceeds the target, and the sum before it; never one of weight 0."""
    place_X = tl.arange(0, TILE_X)
    sum_X = tl.cumsum(weight_X, 0)
    # A target that rounding pushed up to the whole mass, or past it, belongs to the last place with a weight.
    last = tl.max(tl.where(weight_X > 0, place_X, 0), 0)
    over = tl.min(tl.where((sum_X > target) & (weight_X > 0), place_X, TILE_X), 0)
    place = tl.minimum(over, last)
    return place, tl.sum(tl.where(place_X < place, weight_X, 0.0), 0)


@triton.jit
def _weights(x: tl.tensor, largest: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """Return exp((x - largest) / temperature), 0 for -inf."""
    return tl.where(x > float("-inf"), tl.exp((x - largest) / temperature), 0.0)


@triton.jit
def _positive(temperature: tl.tensor) -> tl.tensor:
    return tl.where(temperature > 0, temperature, 1.0)
