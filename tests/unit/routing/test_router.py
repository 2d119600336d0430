"""Router accounts: red if a reservation can leak, be counted twice, or be forgotten on some path."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.routing.base import RoutingRequest
from cluster.routing.policies import LeastOutstandingTokens, RoundRobin
from cluster.routing.reservation import Reservation
from cluster.routing.router import Router
from engine.prefix_feed import PrefixNews
from engine.request import EngineLoad, Placement
from engine.step_costs import StepCosts
from tests.support.fake_target import engine_load

REQUEST = RoutingRequest(100, 20)


def load(num_queued=0, num_outstanding=0, num_kv=0, num_waiting=0, num_running=0, **fields) -> EngineLoad:
    return EngineLoad(
        num_running,
        num_waiting,
        num_outstanding,
        *(8, 8, 0, 0, 0, 0, 0, 0),
        num_uncached_tokens=num_queued,
        num_kv_tokens=num_kv,
        **fields,
    )


def outstanding(router: Router, group_id: str) -> int:
    return router.view(group_id).num_outstanding_tokens


def numbers(router: Router, group_id: str) -> tuple[int, ...]:
    view = router.view(group_id)
    return (
        view.num_queued_tokens,
        view.num_outstanding_tokens,
        view.num_kv_tokens,
        view.num_waiting,
        view.num_running,
    )


def test_least_outstanding_picks_the_group_with_less_work():
    router = Router(LeastOutstandingTokens())
    router.report("a", engine_load(500))
    router.report("b", engine_load(100))
    assert router.reserve(["a", "b"], REQUEST).group_id == "b"


def test_a_burst_spreads_before_any_group_has_reported():
    router = Router(LeastOutstandingTokens())
    picked = [router.reserve(["a", "b", "c", "d"], REQUEST).group_id for _ in range(40)]
    assert {group: picked.count(group) for group in "abcd"} == dict.fromkeys("abcd", 10)


@pytest.mark.parametrize("policy", [LeastOutstandingTokens(), RoundRobin()])
def test_idle_groups_take_turns(policy):
    router = Router(policy)
    picked = []
    for _ in range(6):
        with router.reserve(["a", "b"], REQUEST) as reservation:
            picked.append(reservation.group_id)
    assert picked == ["a", "b"] * 3


def test_a_reservation_counts_from_the_choice_until_the_context_ends():
    router = Router(LeastOutstandingTokens())
    with pytest.raises(RuntimeError), router.reserve(["a"], REQUEST):
        assert numbers(router, "a") == (100, 120, 0, 1, 0)
        raise RuntimeError
    assert numbers(router, "a") == (0, 0, 0, 0, 0)


def test_release_happens_once():
    router = Router(LeastOutstandingTokens())
    other = router.reserve(["a"], REQUEST)
    with router.reserve(["a"], REQUEST) as reservation:
        reservation.release()
        reservation.release()
    assert outstanding(router, "a") == other.num_outstanding_tokens == 120


def test_the_first_token_moves_the_prompt_from_the_queue_into_memory():
    router = Router(LeastOutstandingTokens())
    reservation = router.reserve(["a"], REQUEST)
    reservation.progress(1)
    assert numbers(router, "a") == (0, 19, 101, 0, 1)
    reservation.progress(50)
    assert outstanding(router, "a") == 0


def test_a_report_replaces_what_it_holds_and_keeps_what_is_younger():
    router = Router(LeastOutstandingTokens())
    held = router.reserve(["a"], REQUEST)
    held.accepted()
    router.reserve(["a"], RoutingRequest(7, 3))
    router.report("a", load(num_queued=60, num_outstanding=80, num_kv=40, num_running=1))
    assert numbers(router, "a") == (67, 90, 40, 1, 1)
    held.release()  # it was running there, as the report said
    assert numbers(router, "a")[1] == 10


def test_a_report_from_before_the_acceptance_is_added_to_the_reservation():
    router = Router(LeastOutstandingTokens())
    reservation = router.reserve(["a"], REQUEST)
    router.report("a", engine_load(300))  # all of it other gateways' work
    assert outstanding(router, "a") == 420
    reservation.accepted()
    router.report("a", engine_load(420))
    assert outstanding(router, "a") == 420


def test_other_gateways_work_stays_while_own_work_drains():
    router = Router(LeastOutstandingTokens())
    reservation = router.reserve(["a"], REQUEST)
    reservation.accepted()
    router.report("a", engine_load(1120))
    reservation.progress(5)
    assert outstanding(router, "a") == 1120  # what a report holds stays until the next
    router.report("a", engine_load(1015))
    reservation.release()
    assert outstanding(router, "a") == 1000


def test_an_estimate_above_the_report_does_not_make_other_work_negative():
    router = Router(LeastOutstandingTokens())
    reservation = router.reserve(["a"], REQUEST)
    reservation.accepted()
    younger = router.reserve(["a"], RoutingRequest(5, 5))
    router.report("a", engine_load(10))  # the group found the prompt in its prefix cache
    reservation.release()
    assert outstanding(router, "a") == younger.num_outstanding_tokens == 10


def test_placements_of_other_gateways_count_until_the_next_report():
    router = Router(LeastOutstandingTokens())
    router.note_placed("a", Placement(num_uncached_tokens=30, num_tokens=100, max_tokens=20))
    assert numbers(router, "a") == (30, 50, 0, 1, 0)
    router.report("a", load(num_queued=30, num_outstanding=50, num_waiting=1))
    assert numbers(router, "a") == (30, 50, 0, 1, 0)


def test_reservations_of_a_forgotten_group_do_not_haunt_its_successor():
    router = Router(LeastOutstandingTokens())
    old = router.reserve(["a"], REQUEST)
    router.forget("a")
    new = router.reserve(["a"], REQUEST)
    old.release()
    assert outstanding(router, "a") == new.num_outstanding_tokens == 120


def test_a_cached_prefix_is_no_work():
    router = Router(LeastOutstandingTokens())
    router.note_prefixes("a", PrefixNews(1, 0, True, [11], []))
    with router.reserve(["a"], REQUEST._replace(prefix_keys=[11])) as reservation:
        assert reservation.num_cached_tokens == 64
        assert numbers(router, "a") == (36, 56, 0, 1, 0)
    with router.reserve(["a"], RoutingRequest(64, 1, prefix_keys=[11])):
        assert router.view("a").num_queued_tokens == 1  # the last token is computed in any case


def test_a_prompt_on_the_way_is_a_cached_prefix_for_the_next():
    router = Router(LeastOutstandingTokens())
    router.note_prefixes("a", PrefixNews(1, 0, True, [], []))
    request = REQUEST._replace(prefix_keys=[11])
    with router.reserve(["a"], request):
        assert router.reserve(["a"], request).num_cached_tokens == 64
    assert router.reserve(["a"], request).num_cached_tokens == 0  # it ended before the group stored it


class Memory:
    """A policy that keeps what it saw."""

    def __init__(self):
        self.expected: list[float] = []
        self.costs: dict[str, StepCosts] = {}

    def pick(self, groups, request):
        self.expected.append(request.num_likely_tokens)
        self.costs = {group.group_id: group.step_costs for group in groups}
        return groups[0].group_id


def test_output_lengths_are_learned_from_what_ends():
    policy = Memory()
    router = Router(policy)
    for num_tokens in (10, 30):
        with router.reserve(["a"], RoutingRequest(5, 1000, model="chat")) as reservation:
            reservation.progress(num_tokens)
    router.reserve(["a"], RoutingRequest(5, 1000, model="chat"))
    router.reserve(["a"], RoutingRequest(5, 8, model="chat"))
    router.reserve(["a"], RoutingRequest(5, 1000, model="chat", num_expected_tokens=3))
    assert policy.expected[-3:] == [20, 8, 3]


def test_a_group_that_has_not_learned_its_costs_counts_as_alike_to_one_that_has():
    policy, costs = Memory(), StepCosts(1.0, 2.0, 3.0, 4.0)
    router = Router(policy)
    router.report("a", load(step_costs=costs))
    router.report("b", load())
    router.reserve(["a", "b"], REQUEST)
    assert policy.costs == {"a": costs, "b": costs}
    learned = StepCosts(9.0, 9.0, 9.0, 9.0)
    router.report("b", load(step_costs=learned))
    router.reserve(["a", "b"], REQUEST)
    assert policy.costs == {"a": costs, "b": learned}


class RouterMachine(RuleBasedStateMachine):
    """Any order of reserve, accept, progress, release, report and news keeps every account exact and never negative."""

    groups = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(LeastOutstandingTokens())
        self.open: list[Reservation] = []
        self.unreported: list[Reservation] = []

    @rule(num_tokens=st.integers(0, 1000), max_tokens=st.integers(0, 1000), num_keys=st.integers(0, 4))
    def reserve(self, num_tokens, max_tokens, num_keys):
        request = RoutingRequest(num_tokens, max_tokens, prefix_keys=range(num_keys))
        reservation = self.router.reserve(self.groups, request)
        self.open.append(reservation)
        self.unreported.append(reservation)

    @rule(data=st.data(), num_tokens=st.integers(0, 50), is_accepted=st.booleans())
    def advance(self, data, num_tokens, is_accepted):
        if self.open:
            reservation = data.draw(st.sampled_from(self.open))
            if is_accepted:
                reservation.accepted()
            reservation.progress(num_tokens)

    @rule(data=st.data(), has_failed=st.booleans())
    def release(self, data, has_failed):
        if self.open:
            reservation = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
            if has_failed:
                reservation.failed()
            reservation.release()
            reservation.progress(3)
            reservation.accepted()
            assert reservation.num_outstanding_tokens == 0
            if reservation in self.unreported:
                self.unreported.remove(reservation)

    @rule(group=st.sampled_from(groups), counts=st.tuples(*[st.integers(0, 5000)] * 5))
    def report(self, group, counts):
        self.router.report(group, load(*counts))
        self.unreported = [r for r in self.unreported if r.group_id != group or not r.is_accepted]
        own = [reservation.work for reservation in self.unreported if reservation.group_id == group]
        assert numbers(self.router, group) == tuple(map(sum, zip(counts, *own, strict=True)))

    @rule(group=st.sampled_from(groups), num_tokens=st.integers(0, 500))
    def placed_elsewhere(self, group, num_tokens):
        self.router.note_placed(group, Placement(num_tokens, num_tokens + 10, 20))

    @rule(group=st.sampled_from(groups), epoch=st.integers(1, 3), num_keys=st.integers(0, 4))
    def cached(self, group, epoch, num_keys):
        self.router.note_prefixes(group, PrefixNews(epoch, 0, True, list(range(num_keys)), []))

    @invariant()
    def nothing_is_negative_or_lost(self):
        for group in self.groups:
            own = [reservation.work for reservation in self.unreported if reservation.group_id == group]
            for seen, *counted in zip(numbers(self.router, group), *own, strict=True):
                assert seen >= sum(counted) >= 0

    def teardown(self):
        for reservation in self.open:
            reservation.release()
        for group in self.groups:
            self.router.report(group, load())
            assert numbers(self.router, group) == (0, 0, 0, 0, 0)
            self.router.forget(group)
            self.router.note_prefixes(group, PrefixNews(9, 0, True, [], []))
        assert self.router.reserve(self.groups, RoutingRequest(500, 1, range(4))).num_cached_tokens == 0


TestRouterMachine = RouterMachine.TestCase
TestRouterMachine.settings = settings(max_examples=40, deadline=None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=200), st.integers(2, 8))
def test_concurrent_reserves_stay_within_one_request_of_each_other(lengths, num_groups):
    router = Router(LeastOutstandingTokens())
    groups = [f"g{index}" for index in range(num_groups)]
    for length in lengths:
        router.reserve(groups, RoutingRequest(length, 0))
    loads = [outstanding(router, group) for group in groups]
    assert max(loads) - min(loads) <= max(lengths)
