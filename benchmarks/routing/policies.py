"""The routers that are compared: those that run live, each with one of the policies of `cluster.routing`."""

from collections.abc import Callable, Mapping
from functools import partial
from random import Random

from benchmarks.routing.service import MakeRouter
from cluster.routing.base import RoutingPolicy
from cluster.routing.cost import CostPolicy
from cluster.routing.policies import POLICIES
from cluster.routing.prefix_index import PrefixIndex
from cluster.routing.router import Router
from core.clock import Clock

OURS = "cost"


class EventsOnlyIndex(PrefixIndex):
    """Knows what groups say they hold, and credits no prompt that is on its way."""

    def expect(self, group_id: str, keys: object, num_found: int) -> None:
        """Expect nothing."""


def _router(make_policy: Callable[[Random], RoutingPolicy], clock: Clock, rng: Random) -> Router:
    return Router(make_policy(rng), clock=clock)


def _events_only(make_policy: Callable[[Random], RoutingPolicy], clock: Clock, rng: Random) -> Router:
    return Router(make_policy(rng), clock=clock, index=EventsOnlyIndex())


ROUTERS: Mapping[str, MakeRouter] = {
    **{name: partial(_router, make_policy) for name, make_policy in POLICIES.items()},
    "llm-d, events only": partial(_events_only, POLICIES["llm-d"]),
    "cost, events only": partial(_events_only, POLICIES[OURS]),
    "cost, jitter": partial(_router, partial(CostPolicy, jitter=0.5)),
}
"""Routers to simulate: each policy as it is, and some with one thing changed."""
