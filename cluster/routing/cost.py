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
SLO attainment). The constants come from replays of the Mooncake traces and are flat around their values: g from 2 to 4.
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
WORK_WEIGHT = 3.0
"""g. 0 ignores what computing costs later requests; above 4 hot groups grow too hot."""
STALL_WEIGHT = 0.02
"""x. Each running request waits while a prompt is computed beside it, but no first token does."""
MEMORY_WEIGHT = 8.0
"""A group out of KV blocks preempts or lets requests wait, which costs several times what the blocks alone explain."""
STALE_FACTOR = 2.0


class Prediction(NamedTuple):
    """What placing a request on one group would mean."""

    ttft_s: float
    """From now to its first token."""
    burden_s: float
    """What other requests lose by it."""

    @property
    def cost_s(self) -> float:
        """Both together."""
        return self.ttft_s + self.burden_s


def predict(group: GroupView, request: RoutingRequest) -> Prediction:
    """Return what placing `request` on `group` would mean. Never negative."""
    costs = group.step_costs
    num_cached = group.num_cached_tokens
    num_queued = group.num_queued_tokens
    num_running = group.num_running
    num_kv = group.num_kv_tokens
    num_uncached = max(1, request.num_tokens - num_cached)

    attention = 1 + (request.num_tokens + num_cached) / (2 * DOUBLED_AT_TOKENS)
    work_s = num_uncached * costs.prefill_token_s * attention
    queue_s = num_queued * costs.prefill_token_s * QUEUE_GROWTH
    step_s = costs.base_s + costs.sequence_s * num_running + costs.kv_token_s * num_kv
    num_steps = (num_uncached + num_queued) / group.max_step_tokens + 1
    ttft_s = queue_s + work_s + num_steps * step_s

    num_output = request.num_likely_tokens
    num_kv_soon = num_kv + num_queued + request.num_tokens
    num_missing = num_kv_soon + num_output - group.max_kv_tokens
    if num_missing > 0 and group.max_kv_tokens:
        # Running requests give their tokens back once in the time of an output.
        ttft_s += MEMORY_WEIGHT * num_missing / group.max_kv_tokens * num_output * step_s

    decode_s = costs.sequence_s * group.num_requests + costs.kv_token_s * num_kv_soon
    burden_s = work_s * (WORK_WEIGHT + STALL_WEIGHT * num_running) + num_output * decode_s
    if group.is_stale:
        return Prediction(ttft_s * STALE_FACTOR, burden_s * STALE_FACTOR)
    return Prediction(ttft_s, burden_s)


class CostPolicy:
    """The least cost. With a target, the least burden among groups that meet it; past the limit, none."""

    def __init__(self, rng: Random | None = None, jitter: float = 0.0) -> None:
        """`jitter`: up to this much of its cost is added to each group at random, so that several routers with old
        reports do not all pick the same one; needs `rng`. 0.3 if placements of others are not heard of, else 0.
        """
        self._rng = rng if rng is not None else Random(0)
        self._jitter = jitter

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        """Return the group_id of the best. Raises Overloaded if no group can meet `request.ttft_limit_s`."""
        predictions = [predict(group, request) for group in groups]
        if request.ttft_limit_s is not None:
            _require_within(request.ttft_limit_s, predictions)
        scores = _scores(predictions, request.ttft_target_s)
        if self._jitter:
            scores = [score * (1 + self._jitter * self._rng.random()) for score in scores]
        return groups[scores.index(min(scores))].group_id


def _scores(predictions: Sequence[Prediction], ttft_target_s: float | None) -> list[float]:
    """Return what to minimise: cost; or with a target, burden where it is met and how late it is where it is not."""
    if ttft_target_s is None:
        return [ttft_s + burden_s for ttft_s, burden_s in predictions]
    soonest_s = min(ttft_s for ttft_s, _ in predictions)
    if soonest_s > ttft_target_s:
        return [ttft_s for ttft_s, _ in predictions]
    return [burden_s if ttft_s <= ttft_target_s else float("inf") for ttft_s, burden_s in predictions]


def _require_within(ttft_limit_s: float, predictions: Sequence[Prediction]) -> None:
    soonest_s = min(ttft_s for ttft_s, _ in predictions)
    if soonest_s > ttft_limit_s:
        raise Overloaded(
            f"the first token would take {soonest_s:.1f} s, more than the limit of {ttft_limit_s:.1f} s; try again",
            retry_after_s=soonest_s - ttft_limit_s,
        )
