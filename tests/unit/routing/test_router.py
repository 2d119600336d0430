"""Router accounts: red if a reservation can leak, be counted twice, or be forgotten on some path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.routing.base import RequestCost
from cluster.routing.policies import LeastOutstandingTokens, RoundRobin
from cluster.routing.router import Reservation, Router
from tests.support.fake_target import engine_load

COST = RequestCost(100, 20)


def outstanding(router: Router, group_id: str) -> int:
    return router.view(group_id).num_outstanding_tokens


def test_least_outstanding_picks_the_group_with_less_work():
    router = Router(LeastOutstandingTokens())
    router.report("a", engine_load(500))
    router.report("b", engine_load(100))
    assert router.reserve(["a", "b"], COST).group_id == "b"


def test_a_burst_spreads_before_any_group_has_reported():
    router = Router(LeastOutstandingTokens())
    picked = [router.reserve(["a", "b", "c", "d"], COST).group_id for _ in range(40)]
    assert {group: picked.count(group) for group in "abcd"} == dict.fromkeys("abcd", 10)


@pytest.mark.parametrize("policy", [LeastOutstandingTokens(), RoundRobin()])
def test_idle_groups_take_turns(policy):
    router = Router(policy)
    picked = []
    for _ in range(6):
        with router.reserve(["a", "b"], COST) as reservation:
            picked.append(reservation.group_id)
    assert picked == ["a", "b"] * 3


def test_round_robin_ignores_load():
    router = Router(RoundRobin())
    router.report("a", engine_load(10**6))
    assert [router.reserve(["a", "b"], COST).group_id for _ in range(4)] == ["a", "b", "a", "b"]


def test_a_reservation_counts_from_the_choice_until_the_context_ends():
    router = Router(LeastOutstandingTokens())
    with pytest.raises(RuntimeError), router.reserve(["a"], COST):
        assert outstanding(router, "a") == 120
        raise RuntimeError
    assert outstanding(router, "a") == 0


def test_release_happens_once():
    router = Router(LeastOutstandingTokens())
    other = router.reserve(["a"], COST)
    with router.reserve(["a"], COST) as reservation:
        reservation.release()
        reservation.release()
    assert outstanding(router, "a") == other.num_outstanding_tokens == 120


def test_progress_takes_the_prefill_off_at_the_first_token():
    router = Router(LeastOutstandingTokens())
    reservation = router.reserve(["a"], COST)
    reservation.progress(1)
    assert outstanding(router, "a") == 19
    reservation.progress(50)
    assert outstanding(router, "a") == 0


def test_a_report_does_not_count_own_accepted_requests_twice():
    router = Router(LeastOutstandingTokens())
    reservation = router.reserve(["a"], COST)
    reservation.accepted()
    router.report("a", engine_load(120))
    assert outstanding(router, "a") == 120
    reservation.release()
    assert outstanding(router, "a") == 0


def test_a_report_from_before_the_acceptance_is_added_to_the_reservation():
    router = Router(LeastOutstandingTokens())
    reservation = router.reserve(["a"], COST)
    router.report("a", engine_load(300))  # all of it other gateways' work
    assert outstanding(router, "a") == 420
    reservation.accepted()
    router.report("a", engine_load(420))
    assert outstanding(router, "a") == 420


def test_other_gateways_work_stays_while_own_work_drains():
    router = Router(LeastOutstandingTokens())
    reservation = router.reserve(["a"], COST)
    reservation.accepted()
    router.report("a", engine_load(1120))
    reservation.progress(5)
    assert outstanding(router, "a") == 1015
    reservation.release()
    assert outstanding(router, "a") == 1000


def test_an_estimate_above_the_report_does_not_make_other_work_negative():
    router = Router(LeastOutstandingTokens())
    reservation = router.reserve(["a"], COST)
    reservation.accepted()
    router.report("a", engine_load(10))  # the group found the prompt in its prefix cache
    reservation.release()
    assert outstanding(router, "a") == 0


def test_reservations_of_a_forgotten_group_do_not_haunt_its_successor():
    router = Router(LeastOutstandingTokens())
    old = router.reserve(["a"], COST)
    router.forget("a")
    new = router.reserve(["a"], COST)
    old.release()
    assert outstanding(router, "a") == new.num_outstanding_tokens == 120


class RouterMachine(RuleBasedStateMachine):
    """Any order of reserve, accept, progress, release and report keeps every account exact and never negative."""

    groups = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(LeastOutstandingTokens())
        self.open: list[Reservation] = []

    @rule(prefill=st.integers(0, 1000), decode=st.integers(0, 1000))
    def reserve(self, prefill, decode):
        before = {group: outstanding(self.router, group) for group in self.groups}
        reservation = self.router.reserve(self.groups, RequestCost(prefill, decode))
        assert before[reservation.group_id] == min(before.values())
        self.open.append(reservation)

    @rule(data=st.data(), num_tokens=st.integers(0, 50))
    def advance(self, data, num_tokens):
        if self.open:
            reservation = data.draw(st.sampled_from(self.open))
            if data.draw(st.booleans()):
                reservation.accepted()
            reservation.progress(num_tokens)

    @rule(data=st.data())
    def release(self, data):
        if self.open:
            reservation = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
            reservation.release()
            reservation.progress(3)
            reservation.accepted()
            assert reservation.num_outstanding_tokens == 0

    @rule(group=st.sampled_from(groups), num_tokens=st.integers(0, 5000))
    def report(self, group, num_tokens):
        self.router.report(group, engine_load(num_tokens))

    @invariant()
    def nothing_is_negative_or_lost(self):
        for group in self.groups:
            own = sum(reservation.num_outstanding_tokens for reservation in self.open if reservation.group_id == group)
            assert outstanding(self.router, group) >= own >= 0

    def teardown(self):
        for reservation in self.open:
            reservation.release()
        for group in self.groups:
            self.router.report(group, engine_load(0))
            assert outstanding(self.router, group) == 0


TestRouterMachine = RouterMachine.TestCase


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=200), st.integers(2, 8))
def test_concurrent_reserves_stay_within_one_request_of_each_other(costs, num_groups):
    router = Router(LeastOutstandingTokens())
    groups = [f"g{index}" for index in range(num_groups)]
    for cost in costs:
        router.reserve(groups, RequestCost(cost, 0))
    loads = [outstanding(router, group) for group in groups]
    assert max(loads) - min(loads) <= max(costs)
