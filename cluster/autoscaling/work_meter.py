"""What one group tells the autoscaler: its load reports, turned into groups' worth of work."""

import math
from collections import deque
from typing import NamedTuple

from engine.request import EngineLoad

WINDOWS_S = (15.0, 60.0)
"""Rates are measured over both, and the larger one counts: a burst at once, a slow stream of long requests too."""


class GroupWork(NamedTuple):
    """The fields of `policy.Observation` for one group, and the names of its metrics; they add up over groups."""

    prefill_load: float = 0.0
    decode_load: float = 0.0
    backlog_s: float = 0.0
    resident: float = 0.0


class _Totals(NamedTuple):
    """Counts since the start of the group's engine."""

    now_s: float
    num_prefill_tokens: int
    """Uncached prompt tokens of requests that have begun, and of those that wait."""
    num_output_tokens: int


class WorkMeter:
    """Keeps a minute of load reports of one group. A restarted engine, which counts from zero again, starts it anew."""

    def __init__(self, max_running: int) -> None:
        """`max_running`: requests that the group computes at the same time when it is full."""
        self._max_running = max_running
        self._totals: deque[_Totals] = deque()

    def measure(self, now_s: float, load: EngineLoad) -> GroupWork:
        """Take in a report, and return what the group does; zeros until steps' costs are known."""
        prefill_rate, output_rate = self._rates(now_s, load)
        costs = load.step_costs
        if costs is None:
            return GroupWork(resident=_resident(load))
        num_kv_tokens = load.num_kv_tokens / max(1, load.num_running)
        # A step's fixed cost is shared by the rows of a full group, however few there are now.
        most_rows = min(self._max_running, load.max_kv_tokens / num_kv_tokens if num_kv_tokens else math.inf)
        token_s = costs.base_s / max(1.0, most_rows) + costs.sequence_s + costs.kv_token_s * num_kv_tokens
        return GroupWork(
            # Prompts fill steps, each of which has its fixed cost too.
            prefill_load=prefill_rate * (costs.prefill_token_s + costs.base_s / max(1, load.max_step_tokens)),
            decode_load=output_rate * token_s,
            # The wait counts outputs too once rows are short; prefills count even before it can be predicted.
            backlog_s=max(load.wait_s, load.num_uncached_tokens * costs.prefill_token_s),
            resident=_resident(load),
        )

    def _rates(self, now_s: float, load: EngineLoad) -> tuple[float, float]:
        """Return uncached prompt tokens that arrive, and output tokens, per second."""
        num_begun = load.num_prompt_tokens - load.num_cached_prompt_tokens
        latest = _Totals(now_s, num_begun + load.num_uncached_tokens, load.num_generated_tokens)
        if self._totals and latest.num_output_tokens < self._totals[-1].num_output_tokens:
            self._totals.clear()
        self._totals.append(latest)
        while self._totals[0].now_s < now_s - max(WINDOWS_S):
            self._totals.popleft()
        rates = [self._rates_since(now_s - window_s, latest) for window_s in WINDOWS_S]
        return max(prefill for prefill, _ in rates), max(output for _, output in rates)

    def _rates_since(self, start_s: float, latest: _Totals) -> tuple[float, float]:
        oldest = next(totals for totals in self._totals if totals.now_s >= start_s)
        seconds = latest.now_s - oldest.now_s
        if seconds <= 0:
            return 0.0, 0.0
        num_prefill = max(0, latest.num_prefill_tokens - oldest.num_prefill_tokens)
        return num_prefill / seconds, (latest.num_output_tokens - oldest.num_output_tokens) / seconds


def _resident(load: EngineLoad) -> float:
    return load.num_kv_tokens / load.max_kv_tokens if load.max_kv_tokens else 0.0
