"""When requests come, how long they are, and what they share: public traces, and a generator of hot prefixes.

A trace has no text. What two prompts share is said by block ids: one per 512 tokens, equal ids at the head of two
prompts are the same tokens.
"""

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

BLOCK_TOKENS = 512
"""Tokens per block id of the Mooncake traces; the other sources publish no ids."""

_MOONCAKE_TICK_S = 3.0
"""The conversation trace's times are rounded to this: undisturbed, each tick is a burst of ten."""

_COPY_ID_STRIDE = 1 << 40
"""Block ids of one copy of a trace are apart from those of the next by this."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as a trace tells it."""

    at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    block_ids: tuple[int, ...] = ()
    """Of the prompt's full blocks; empty where nothing is known to be shared."""


@dataclass(frozen=True)
class Trace:
    """Arrivals in order of time, over `span_s` seconds."""

    name: str
    span_s: float
    arrivals: tuple[Arrival, ...]

    @property
    def rate_per_s(self) -> float:
        """Requests per second over the whole span."""
        return len(self.arrivals) / self.span_s

    @property
    def mean_output_tokens(self) -> float:
        """Of a request."""
        return sum(arrival.num_output_tokens for arrival in self.arrivals) / len(self.arrivals)

    def at_rate(self, rate_per_s: float) -> "Trace":
        """Return the same requests with time stretched or squeezed to that mean rate."""
        scale = self.rate_per_s / rate_per_s
        scaled = tuple(replace(arrival, at_s=arrival.at_s * scale) for arrival in self.arrivals)
        return Trace(self.name, self.span_s * scale, scaled)

    def first(self, num_arrivals: int) -> "Trace":
        """Return the beginning of the trace, up to the arrival that is left out first."""
        if num_arrivals >= len(self.arrivals):
            return self
        return Trace(self.name, self.arrivals[num_arrivals].at_s, self.arrivals[:num_arrivals])

    def superposed(self, num_copies: int, seed: int) -> "Trace":
        """Return the trace laid over itself, each copy shifted in time (round the end) and sharing with no other."""
        draws = random.Random(seed)
        shifts = [0.0, *(draws.random() * self.span_s for _ in range(num_copies - 1))]
        copies = [
            Arrival(
                (arrival.at_s + shift_s) % self.span_s,
                arrival.num_prompt_tokens,
                arrival.num_output_tokens,
                tuple(block_id + copy * _COPY_ID_STRIDE for block_id in arrival.block_ids),
            )
            for copy, shift_s in enumerate(shifts)
            for arrival in self.arrivals
        ]
        return Trace(f"{self.name} x{num_copies}", self.span_s, _in_order(copies))


def mooncake(path: Path, seed: int, jitter_s: float = _MOONCAKE_TICK_S) -> Trace:
    """Read a Mooncake JSONL trace (`timestamp` ms, lengths, `hash_ids`); times get uniform jitter in [0, jitter_s)."""
    draws = random.Random(seed)
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    arrivals = [
        Arrival(
            row["timestamp"] / 1000 + jitter_s * draws.random(),
            max(1, row["input_length"]),
            max(1, row["output_length"]),
            tuple(row["hash_ids"][: row["input_length"] // BLOCK_TOKENS]),
        )
        for row in rows
    ]
    return _trace(path.stem, arrivals)


def lengths_csv(path: Path) -> Trace:
    """Read a CSV trace (`arrival_s`, `input_tokens`, `output_tokens`: Azure, ServeGen, AIBrix); nothing is shared."""
    with path.open(encoding="utf-8", newline="") as file:
        arrivals = [_csv_arrival(row) for row in csv.DictReader(file)]
    return _trace(path.stem, arrivals)


def hot_prefixes(
    seed: int, num_requests: int = 3600, rate_per_s: float = 6.0, num_prefixes: int = 64, prefix_blocks: int = 12
) -> Trace:
    """Make the load routers are advertised with: Zipf-popular system prompts, short questions, Poisson arrivals."""
    draws = random.Random(seed)
    weights = list(accumulate((rank + 1) ** -0.9 for rank in range(num_prefixes)))
    times = accumulate(draws.expovariate(rate_per_s) for _ in range(num_requests))
    arrivals = [_with_hot_prefix(draws, at_s, weights, prefix_blocks) for at_s in times]
    return _trace("hot_prefixes", arrivals)


def _with_hot_prefix(draws: random.Random, at_s: float, weights: Sequence[float], prefix_blocks: int) -> Arrival:
    (prefix,) = draws.choices(range(len(weights)), cum_weights=weights)
    num_own = draws.randint(200, 2000)
    shared = tuple(prefix * prefix_blocks + block for block in range(prefix_blocks))
    own = tuple(draws.getrandbits(38) + _COPY_ID_STRIDE // 2 for _ in range(num_own // BLOCK_TOKENS))
    num_prompt = prefix_blocks * BLOCK_TOKENS + num_own
    return Arrival(at_s, num_prompt, draws.randint(50, 400), shared + own)


READERS: Mapping[str, Callable[[Path], Trace]] = {
    "mooncake_conversation": lambda folder: mooncake(folder / "mooncake_conversation.jsonl", seed=1),
    "mooncake_synthetic": lambda folder: mooncake(folder / "mooncake_synthetic.jsonl", seed=1, jitter_s=0.0),
    "servegen_m_large": lambda folder: lengths_csv(folder / "servegen_m_large_30min.csv"),
    "servegen_r1": lambda folder: lengths_csv(folder / "servegen_deepseek_r1_30min.csv"),
    "azure_conversation": lambda folder: lengths_csv(folder / "azure2023_conversation.csv"),
    "azure_code": lambda folder: lengths_csv(folder / "azure2023_code.csv"),
    "hot_prefixes": lambda folder: hot_prefixes(seed=11),
}
"""How to read each trace from the folder of traces; the seeds are part of the trace."""


def _csv_arrival(row: Mapping[str, str]) -> Arrival:
    return Arrival(float(row["arrival_s"]), max(1, int(row["input_tokens"])), max(1, int(row["output_tokens"])))


def _trace(name: str, arrivals: Sequence[Arrival]) -> Trace:
    ordered = _in_order(arrivals)
    return Trace(name, max(ordered[-1].at_s, 1e-9), ordered)


def _in_order(arrivals: Sequence[Arrival]) -> tuple[Arrival, ...]:
    return tuple(sorted(arrivals, key=lambda arrival: arrival.at_s))


def spans(block_ids: Sequence[int], spans_per_block: int) -> Iterator[int]:
    """Yield the keys of the prompt's spans, as a router would compute them: several to a block of the trace."""
    for block_id in block_ids:
        yield from range(block_id * spans_per_block, (block_id + 1) * spans_per_block)
