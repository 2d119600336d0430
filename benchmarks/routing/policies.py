"""The routers that are compared: those that run live, each with one of the policies of `cluster.routing`."""

from collections.abc import Callable, Mapping
from functools import partial
from random import Random

from benchmarks.routing.service import MakeRouter
from cluster.routing.base import RoutingPolicy
from cluster.routing.baselines.dynamo import DynamoLinear
from cluster.routing.baselines.least_outstanding import LeastOutstandingTokens, LeastRequests
from cluster.routing.baselines.llm_d import LlmD
from cluster.routing.baselines.power_of_two import PowerOfTwo
from cluster.routing.baselines.ray_prefix import RayPrefix
from cluster.routing.baselines.round_robin import RoundRobin
from cluster.routing.baselines.sglang import SGLangCacheAware
from cluster.routing.cost import CostPolicy
from cluster.routing.prefix_index import PrefixIndex
from cluster.routing.router import Router
from core.clock import Clock

MakePolicy = Callable[[Random], RoutingPolicy]


class EventsOnlyIndex(PrefixIndex):
    """Knows what groups say they hold, and credits no prompt that is on its way."""

    def expect(self, group_id: str, keys: object, num_found: int) -> None:
        """Expect nothing."""


def _router(make_policy: MakePolicy, clock: Clock, rng: Random) -> Router:
    return Router(make_policy(rng), clock=clock)


def _events_only(make_policy: MakePolicy, clock: Clock, rng: Random) -> Router:
    return Router(make_policy(rng), clock=clock, index=EventsOnlyIndex())


POLICIES: Mapping[str, MakePolicy] = {
    "round_robin": lambda rng: RoundRobin(),
    "power_of_two": PowerOfTwo,
    "least_requests": lambda rng: LeastRequests(),
    "least_tokens": lambda rng: LeastOutstandingTokens(),
    "sglang": SGLangCacheAware,
    "ray_prefix": RayPrefix,
    "dynamo": lambda rng: DynamoLinear(),
    "llm_d": lambda rng: LlmD(),
    "predicted_work": CostPolicy,
}
"""By the names of the tables. Ours is the last."""

ROUTERS: Mapping[str, MakeRouter] = {
    **{name: partial(_router, make_policy) for name, make_policy in POLICIES.items()},
    "llm_d_events_only": partial(_events_only, POLICIES["llm_d"]),
    "predicted_work_events_only": partial(_events_only, POLICIES["predicted_work"]),
    "predicted_work_jitter": partial(_router, partial(CostPolicy, jitter=0.5)),
}
"""Routers to simulate; those with a suffix are ours or another's with one thing changed."""
