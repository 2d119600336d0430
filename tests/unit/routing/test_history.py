"""Routing by history alone: red if a group is credited with prompts it never got, or with more than it can hold."""

from cluster.routing.base import RoutingRequest
from cluster.routing.history import RoutingHistory
from cluster.routing.policies import LeastOutstandingTokens
from cluster.routing.router import Router


def cached_tokens(router: Router, keys) -> int:
    with router.reserve(["a"], RoutingRequest(1000, 1, prefix_keys=keys)) as reservation:
        return reservation.num_cached_tokens


def test_what_was_sent_before_counts_as_cached_until_it_would_be_evicted():
    router = Router(LeastOutstandingTokens())
    history = RoutingHistory(router, max_cached_keys=3)
    history.place("a", [1, 2])
    assert cached_tokens(router, [1, 2, 3]) == 128
    history.place("a", [8, 9])
    assert cached_tokens(router, [1, 2, 3]) == 64
    assert cached_tokens(router, [8, 9]) == 128


def test_a_group_that_came_back_under_its_name_starts_with_nothing():
    router = Router(LeastOutstandingTokens())
    history = RoutingHistory(router, max_cached_keys=3)
    history.place("a", [1, 2])
    history.forget("a")
    router.forget("a")
    history.find("a")
    assert cached_tokens(router, [1, 2]) == 0
