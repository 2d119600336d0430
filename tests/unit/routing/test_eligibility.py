"""Which groups may be picked: red if a broken, silent or cold group is flooded, or if caution leaves none at all."""

from cluster.routing.base import RoutingRequest
from cluster.routing.eligibility import EligibilityConfig
from cluster.routing.policies import LeastOutstandingTokens
from cluster.routing.router import Router
from tests.support.fake_clock import FakeClock
from tests.support.fake_target import engine_load

REQUEST = RoutingRequest(100, 20)


class World:
    def __init__(self, **fields):
        self.clock = FakeClock()
        self.router = Router(LeastOutstandingTokens(), clock=self.clock, eligibility=EligibilityConfig(**fields))

    def report(self, **num_outstanding):
        for group_id, num_tokens in num_outstanding.items():
            self.router.report(group_id, engine_load(num_tokens))

    def pick(self, groups="ab"):
        with self.router.reserve(list(groups), REQUEST) as reservation:
            return reservation.group_id

    def fail(self, group_id):
        self.router.reserve([group_id], REQUEST).failed()


def test_a_silent_group_is_doubted_then_left_alone_then_welcomed_back():
    world = World()
    world.report(a=0, b=500)
    world.clock.advance(2.5)
    world.report(b=500)
    assert world.pick() == "a"
    assert world.router.view("a").is_stale
    assert not world.router.view("b").is_stale
    world.clock.advance(3)
    world.report(b=500)
    assert world.pick() == "b"
    world.report(a=0)
    assert world.pick() == "a"


def test_when_all_groups_are_silent_they_are_used_nevertheless():
    world = World()
    world.report(a=0, b=500)
    world.clock.advance(60)
    assert world.pick() == "a"


def test_groups_that_never_report_are_not_doubted_where_none_is_expected_to():
    world = World(eject_after_s=None)
    world.pick()
    world.clock.advance(60)
    assert [world.pick() for _ in range(4)] == ["b", "a", "b", "a"]
    assert not world.router.view("a").is_stale


def test_three_failures_keep_requests_away_for_a_while():
    world = World(eject_after_s=None)
    for _ in range(2):
        world.fail("a")
    assert {world.pick() for _ in range(2)} == {"a", "b"}
    world.fail("a")
    assert [world.pick() for _ in range(3)] == ["b", "b", "b"]
    assert world.pick("a") == "a"  # nothing else is left to try


def test_a_group_that_has_begun_anew_is_not_blamed_for_what_broke_before():
    world = World(eject_after_s=None)
    for _ in range(3):
        world.fail("a")
    world.router.renewed("a")
    assert {world.pick() for _ in range(2)} == {"a", "b"}


def test_failures_long_ago_do_not_count():
    world = World(eject_after_s=None)
    for _ in range(6):
        world.fail("a")
        world.clock.advance(6)
    assert {world.pick() for _ in range(2)} == {"a", "b"}


def test_one_request_tries_a_group_that_failed_and_its_first_token_brings_all_back():
    world = World(eject_after_s=None)
    for _ in range(3):
        world.fail("a")
    world.clock.advance(5)
    world.pick("b")
    trial = world.router.reserve(["a", "b"], REQUEST)
    assert trial.group_id == "a"
    trial.progress(1)
    trial.release()
    assert {world.pick() for _ in range(2)} == {"a", "b"}


def test_a_failed_trial_keeps_requests_away_again():
    world = World(eject_after_s=None)
    for _ in range(3):
        world.fail("a")
    world.clock.advance(5)
    world.fail("a")
    assert [world.pick() for _ in range(2)] == ["b", "b"]


def test_a_new_group_gets_a_quarter_of_the_others_work_at_first():
    world = World()
    world.report(a=0)
    world.clock.advance(20)
    world.report(a=1000, b=0)
    assert world.pick() == "b"
    world.report(b=251)
    assert world.pick() == "a"
    world.clock.advance(5)
    world.report(a=1000, b=251)
    assert world.pick() == "b"


def test_groups_found_when_the_router_begins_are_not_new():
    world = World()
    world.report(a=0)
    world.clock.advance(1)
    world.report(a=1000, b=900)
    world.clock.advance(4.5)
    world.report(a=1000, b=900)
    assert world.pick() == "b"
