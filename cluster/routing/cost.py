"""The cost of serving a request on a group, in seconds: how late its first token, and what it takes from others.

    work   = uncached * p * (1 + (prompt + cached) / 2A)              computing this prompt
    queue  = queued * p * 1.15                                       computing what is in front of it
    step   = base + sequence * running + kv * resident               a step without any prompt
    steps  = (uncached + queued) / step budget + 1                   each of which takes that long at least
    first token = queue + work + steps * step + wait for memory
    burden = work * (g + x * running)                                work that later requests or evicted prefixes miss
           + output * (sequence * requests + kv * (all tokens here)) what decoding here costs everybody here

    cost   = first token + burden

One formula, no modes and no thresholds: a long queue and a cached prefix weigh against each other in the same unit. p,
base, sequence and kv are learned by each group; a wrong p costs little (four times too high or too low: two points of
SLO attainment). The constants come from replays of the Mooncake traces and of hot prefixes (`benchmarks.routing`);
those hardly tell weights between 6 and 12 apart.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from cluster.routing.base import GroupView, RoutingRequest
from core.errors import Overloaded

DOUBLED_AT_TOKENS = 60_000
"""A: where a prompt token costs twice what the first one does, for attention grows. Of a 70B model; 40,000 of an 8B."""
QUEUE_GROWTH = 1.15
"""What attention adds to queued prompts, whose positions are not known here."""
WORK_WEIGHT = 8.0
"""g. 0 ignores what computing costs later requests; 3 gives away a hot prefix too easily (docs/routing.md)."""
STALL_WEIGHT = 0.1
"""x. Each running request waits while a prompt is computed beside it, but no first token does."""
MEMORY_WEIGHT = 8.0
"""A group out of KV blocks preempts or lets requests wait, which costs several times what the blocks alone explain."""
STALE_FACTOR = 2.0


class Predictions(NamedTuple):
    """What placing a request on each of some groups would mean, in the order of the groups. Never negative."""

    ttft_s: list[float]
    """From now to its first token."""
    burden_s: list[float]
    """What other requests lose by it."""


def predict(groups: Sequence[GroupView], request: RoutingRequest) -> Predictions:
    """Return what placing `request` on each of `groups` would mean."""
    num_tokens = request.num_tokens
    num_output = request.num_likely_tokens
    ttft_s: list[float] = []
    burden_s: list[float] = []
    for group in groups:
        costs = group.step_costs
        num_cached = group.num_cached_tokens
        num_queued = group.num_queued_tokens
        num_running = group.num_running
        num_kv = group.num_kv_tokens
        num_uncached = num_tokens - num_cached

        attention = 1 + (num_tokens + num_cached) / (2 * DOUBLED_AT_TOKENS)
        work = num_uncached * costs.prefill_token_s * attention
        queue = num_queued * costs.prefill_token_s * QUEUE_GROWTH
        step = costs.base_s + costs.sequence_s * num_running + costs.kv_token_s * num_kv
        first = queue + work + ((num_uncached + num_queued) / group.max_step_tokens + 1) * step

        num_kv_soon = num_kv + num_queued + num_tokens
        num_missing = num_kv_soon + num_output - group.max_kv_tokens
        if num_missing > 0 and group.max_kv_tokens:
            # Running requests give all blocks back once in the time of an output.
            first += MEMORY_WEIGHT * num_missing / group.max_kv_tokens * num_output * step

        decode = costs.sequence_s * (num_running + group.num_waiting) + costs.kv_token_s * num_kv_soon
        burden = work * (WORK_WEIGHT + STALL_WEIGHT * num_running) + num_output * decode
        trust = STALE_FACTOR if group.is_stale else 1.0
        ttft_s.append(first * trust)
        burden_s.append(burden * trust)
    return Predictions(ttft_s, burden_s)


class CostPolicy:
    """The least cost. With a target, the least burden among groups that meet it; past the limit, none."""

    def __init__(self, rng: Random | None = None, jitter: float = 0.0) -> None:
        """`jitter`: up to this share of its cost is added to each group's at random, drawn from `rng`, so that routers
        which do not hear of each other's placements do not all pick the same group; then 0.3 is about right.
        """
        self._rng = rng if rng is not None else Random(0)
        self._jitter = jitter

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of the best. Raises Overloaded if no group can meet `request.ttft_limit_s`."""
        predictions = predict(groups, request)
        if request.ttft_limit_s is not None:
            _require_within(request.ttft_limit_s, min(predictions.ttft_s))
        scores = _scores(predictions, request.ttft_target_s)
        if self._jitter:
            scores = [score * (1 + self._jitter * self._rng.random()) for score in scores]
        return groups[scores.index(min(scores))].group_id


def _scores(predictions: Predictions, ttft_target_s: float | None) -> list[float]:
    """Return what to minimise: cost; or with a target, burden where it is met, or how late it is if nowhere."""
    both = zip(predictions.ttft_s, predictions.burden_s, strict=True)
    if ttft_target_s is None:
        return [ttft + burden for ttft, burden in both]
    if min(predictions.ttft_s) > ttft_target_s:
        return predictions.ttft_s
    return [burden if ttft <= ttft_target_s else float("inf") for ttft, burden in both]


def _require_within(ttft_limit_s: float, soonest_s: float) -> None:
    if soonest_s > ttft_limit_s:
        raise Overloaded(
            f"the first token would take {soonest_s:.1f} s, more than the limit of {ttft_limit_s:.1f} s; try again",
            retry_after_s=soonest_s - ttft_limit_s,
        )
