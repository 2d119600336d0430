"""What became of requests in a simulated run, and whether that was good enough."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from benchmarks.routing.traces import Arrival


@dataclass(slots=True)
class Outcome:
    """One request as its caller saw it. Filled while the run goes on."""

    arrival: Arrival
    first_s: float | None = None
    finished_s: float | None = None
    num_cached_tokens: int = 0
    num_attempts: int = 0
    has_failed: bool = False

    @property
    def ttft_s(self) -> float:
        """Arrival to first token; infinite if there was none."""
        return float("inf") if self.first_s is None else self.first_s - self.arrival.at_s

    @property
    def tpot_s(self) -> float:
        """Mean time between two tokens; 0 for a single one, infinite if the last never came."""
        if self.first_s is None or self.finished_s is None:
            return float("inf")
        return (self.finished_s - self.first_s) / max(1, self.arrival.num_output_tokens - 1)


@dataclass(frozen=True)
class Slo:
    """What a caller accepts: a first token in a time that grows with the prompt, and a steady pace after it."""

    ttft_s: float = 1.0
    ttft_per_prefill: float = 3.0
    """Added: so many times what the whole prompt takes alone, uncached."""
    prefill_tokens_per_s: float = 12_000.0
    tpot_s: float = 0.1

    def ttft_limit_s(self, num_prompt_tokens: int) -> float:
        """Return the latest time for the first token."""
        return self.ttft_s + self.ttft_per_prefill * num_prompt_tokens / self.prefill_tokens_per_s

    def is_met(self, outcome: Outcome) -> bool:
        """Whether the caller got what it accepts."""
        return outcome.ttft_s <= self.ttft_limit_s(outcome.arrival.num_prompt_tokens) and outcome.tpot_s <= self.tpot_s


class Figures(NamedTuple):
    """A run in numbers. Times in seconds; the first tenth of the requests, which meets cold caches, is left out."""

    num_requests: int
    num_failed: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    tpot_p99_s: float
    attainment: float
    """Share of the requests that met the SLO."""
    hit_rate: float
    """Share of the prompt tokens found in a prefix cache."""
    imbalance: float
    """Most work on a replica over the mean, averaged over time."""


WARMUP = 0.1
"""Share of the requests that no figure counts."""


def counted(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """Return the outcomes after the warm-up."""
    return outcomes[int(WARMUP * len(outcomes)) :]


def figures(outcomes: Sequence[Outcome], slo: Slo, imbalance: float = float("nan")) -> Figures:
    """Return the figures of a finished run; failed requests miss the SLO and are in no mean."""
    kept = counted(outcomes)
    served = [outcome for outcome in kept if outcome.finished_s is not None]
    ttft_s = np.array([outcome.ttft_s for outcome in served])
    tpot_s = np.array([outcome.tpot_s for outcome in served if outcome.arrival.num_output_tokens > 1] or [0.0])
    return Figures(
        num_requests=len(kept),
        num_failed=sum(outcome.has_failed for outcome in kept),
        ttft_mean_s=float(ttft_s.mean()),
        ttft_p50_s=float(np.percentile(ttft_s, 50)),
        ttft_p99_s=float(np.percentile(ttft_s, 99)),
        tpot_mean_s=float(tpot_s.mean()),
        tpot_p99_s=float(np.percentile(tpot_s, 99)),
        attainment=sum(map(slo.is_met, kept)) / len(kept),
        hit_rate=sum(outcome.num_cached_tokens for outcome in served)
        / sum(outcome.arrival.num_prompt_tokens for outcome in served),
        imbalance=imbalance,
    )


@dataclass
class MissCounter:
    """Says early that a run cannot reach an attainment any more; such a run need not be finished."""

    slo: Slo
    attainment: float
    num_requests: int
    _num_missed: int = field(default=0, init=False)

    def note(self, index: int, outcome: Outcome) -> None:
        """Count a finished request, if the figures will."""
        if index >= int(WARMUP * self.num_requests) and not self.slo.is_met(outcome):
            self._num_missed += 1

    @property
    def is_lost(self) -> bool:
        """Whether too many have missed."""
        num_counted = self.num_requests - int(WARMUP * self.num_requests)
        return (num_counted - self._num_missed) / num_counted < self.attainment
