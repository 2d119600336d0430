"""What is sent and when: prompts of a known length, arrival times, traces. Seeded, so a run can be repeated.

A, B and C are the project's fixed shapes: short chat, long prompt, and a long prefix that all requests share.
"""

import csv
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from tokenizers import Tokenizer


class Shape(NamedTuple):
    """Lengths in tokens; `num_shared` of the prompt's tokens are the same in every request."""

    num_prompt: int
    num_output: int
    num_shared: int = 0


SHAPES = {"A": Shape(128, 128), "B": Shape(1024, 64), "C": Shape(950, 64, num_shared=900)}

Prompt = str | list[int]
"""Text, or token ids."""

Token = TypeVar("Token")


class Sampling(NamedTuple):
    """How the next token is picked; a temperature of 0 is greedy."""

    temperature: float = 0.0
    seed: int | None = None
    top_p: float | None = None


GREEDY = Sampling()


@dataclass(frozen=True)
class Planned:
    """One request to send; `at_s` counts from the start of the run and only open loops obey it."""

    prompt: Prompt
    num_output: int
    at_s: float = 0.0
    sampling: Sampling = GREEDY


# Short, common words: one token each with a leading blank in the usual byte-pair vocabularies.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work number night point home water room mother area "
    "money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city name team minute idea body back parent face level office "
    "door health person art war history party result change morning reason research girl guy moment air teacher"
).split()


class PromptMaker(Protocol):
    """Makes prompts of a known length."""

    def make(self, num_tokens: int, num_shared: int = 0) -> Prompt:
        """Return a prompt of `num_tokens` of which the first `num_shared` are the same in every prompt."""
        ...


class WordPrompts:
    """Text of one-token words. With a tokenizer file only words that are one token in it are used."""

    def __init__(self, seed: int, tokenizer: Path | None = None) -> None:
        self._draws = _Draws(seed, WORDS if tokenizer is None else _one_token_words(tokenizer))

    def make(self, num_tokens: int, num_shared: int = 0) -> Prompt:
        """Return `num_tokens` words, each with a blank in front."""
        return "".join(f" {word}" for word in self._draws.take(num_tokens, num_shared))


class IdPrompts:
    """Lists of random token ids: exactly `n` tokens for any model whose vocabulary holds `low` to `high`."""

    def __init__(self, seed: int, low: int = 1000, high: int = 20000) -> None:
        self._draws = _Draws(seed, range(low, high))

    def make(self, num_tokens: int, num_shared: int = 0) -> Prompt:
        """Return `num_tokens` ids."""
        return self._draws.take(num_tokens, num_shared)

    def make_many(self, num_prompts: int, num_tokens: int) -> list[list[int]]:
        """Return unshared prompts of equal length, as ids."""
        return [self._draws.take(num_tokens, 0) for _ in range(num_prompts)]


def fixed_shape(shape: Shape, num_requests: int, prompts: PromptMaker) -> list[Planned]:
    """Return requests of one shape."""
    return [Planned(prompts.make(shape.num_prompt, shape.num_shared), shape.num_output) for _ in range(num_requests)]


class TraceColumns(NamedTuple):
    """Names of a trace's columns or keys: arrival in seconds, prompt tokens, output tokens."""

    at: str = "arrival_s"
    prompt: str = "input_tokens"
    output: str = "output_tokens"


def read_trace(
    path: Path, columns: TraceColumns, prompts: PromptMaker, limit: int, time_scale: float = 1.0
) -> list[Planned]:
    """Return the first `limit` rows of a CSV or JSONL trace, in order of arrival, the first at 0 s.

    Arrivals are multiplied by `time_scale` (0.001 for milliseconds). Raises SystemExit naming the bad row.
    """
    rows: list[tuple[float, int, int]] = []
    for number, row in enumerate(itertools.islice(_trace_rows(path), limit), 1):
        try:
            at, num_prompt, num_output = (float(str(row[name])) for name in columns)
        except (KeyError, ValueError) as error:
            raise SystemExit(f"{path}: row {number} has no usable {error}; name the columns with --columns") from None
        rows.append((at * time_scale, max(1, int(num_prompt)), max(1, int(num_output))))
    rows.sort()
    start = rows[0][0] if rows else 0.0
    return [Planned(prompts.make(num_prompt), num_output, at - start) for at, num_prompt, num_output in rows]


def arrivals(planned: list[Planned], rate_per_s: float, is_poisson: bool, seed: int) -> list[Planned]:
    """Return the same requests with arrival times: exponential gaps of that mean rate, or equal gaps."""
    gaps = random.Random(seed)
    at_s = 0.0
    timed: list[Planned] = []
    for one in planned:
        timed.append(replace(one, at_s=at_s))
        at_s += gaps.expovariate(rate_per_s) if is_poisson else 1.0 / rate_per_s
    return timed


class _Draws(Generic[Token]):
    """Random picks from a vocabulary; the shared part depends on the seed alone."""

    def __init__(self, seed: int, vocabulary: Sequence[Token]) -> None:
        self._seed = seed
        self._random = random.Random(seed + 1)
        self._vocabulary = vocabulary

    def take(self, num_tokens: int, num_shared: int) -> list[Token]:
        shared = random.Random(self._seed).choices(self._vocabulary, k=num_shared)
        return shared + self._random.choices(self._vocabulary, k=num_tokens - num_shared)


def _one_token_words(tokenizer: Path) -> list[str]:
    known = Tokenizer.from_file(str(tokenizer))
    words = [word for word in WORDS if len(known.encode(f" {word}", add_special_tokens=False).ids) == 1]
    if not words:
        raise SystemExit(f"{tokenizer}: no word of the built-in list is one token; use --prompts ids")
    return words


def _trace_rows(path: Path) -> Iterator[Mapping[str, object]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
        else:
            yield from (json.loads(line) for line in file if line.strip())
