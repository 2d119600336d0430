from collections.abc import Sequence
from functools import partial

import pytest

from benchmarks.routing.events import EventLoop
from benchmarks.routing.faults import KillPlan, killed_replicas, slow_replica
from benchmarks.routing.service import Service, ServiceSpec
from benchmarks.routing.simulation import simulate, sustains
from benchmarks.routing.traces import Arrival, Trace
from cluster.routing.base import GroupView, RoutingRequest
from cluster.routing.policies import LeastOutstandingTokens, RoundRobin
from cluster.routing.router import Router
from core.errors import Overloaded
from engine.request import EngineLoad


def trace(*arrivals: Arrival) -> Trace:
    return Trace("made up", max(arrival.at_s for arrival in arrivals) + 1e-9, arrivals)


STEADY = trace(*(Arrival(0.2 * index, 1024, 50) for index in range(400)))


class Seen:
    """A policy that remembers what it saw and takes the first."""

    def __init__(self):
        self.views: list[list[tuple]] = []

    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        self.views.append(
            [(view.num_cached_tokens, view.num_queued_tokens, view.num_kv_tokens, view.num_running) for view in groups]
        )
        return min(view.group_id for view in groups)


class Full:
    def pick(self, groups: Sequence[GroupView], request: RoutingRequest) -> str:
        raise Overloaded("no room", retry_after_s=1.0)


def spec_of(policy, **options) -> ServiceSpec:
    return ServiceSpec(lambda clock, rng: Router(policy, clock=clock), **options)


def test_every_request_of_a_trace_is_served_once():
    run = simulate(STEADY, spec_of(RoundRobin()), num_replicas=2)
    assert all(outcome.num_attempts == 1 and outcome.finished_s is not None for outcome in run.outcomes)
    assert run.figures.num_failed == 0


def test_one_seed_gives_one_result():
    spec = spec_of(LeastOutstandingTokens(), num_gateways=3, report_period_s=0.1, gossip_s=0.02)
    assert simulate(STEADY, spec, 3).figures == simulate(STEADY, spec, 3).figures


def test_router_sees_the_cache_and_the_work_that_a_replica_has_now():
    policy = Seen()
    blocks = (1, 2, 3, 4)
    simulate(trace(Arrival(0.0, 2048, 400, blocks), Arrival(3.0, 4096, 2, (*blocks, 5))), spec_of(policy), 1)
    [first], [(num_cached, num_queued, num_kv, num_running)] = policy.views
    assert first == (0, 0, 0, 0)
    assert (num_cached, num_queued, num_running) == (2048, 0, 1)
    assert 2048 + 150 < num_kv < 2048 + 190, "about 2.8 s of 16 ms steps"


def test_router_with_old_reports_still_knows_its_own_reservations():
    policy = Seen()
    simulate(trace(Arrival(0.0, 2000, 400), Arrival(0.01, 100, 2)), spec_of(policy, report_period_s=50.0), 1)
    assert policy.views[1] == [(0, 2000, 0, 0)]


@pytest.mark.parametrize(("gossip_s", "num_queued"), [(None, 0), (0.02, 3000), (0.2, 0)])
def test_another_gateways_placement_is_seen_as_soon_as_it_is_told(gossip_s: float | None, num_queued: int):
    policy = Seen()
    spec = spec_of(policy, num_gateways=1000, report_period_s=50.0, gossip_s=gossip_s)
    simulate(trace(Arrival(0.0, 3000, 9), Arrival(0.1, 100, 2)), spec, 1)
    assert policy.views[1][0][1] == num_queued


def test_killed_replicas_requests_go_on_elsewhere_with_the_tokens_they_have():
    spec = spec_of(LeastOutstandingTokens())
    killed = killed_replicas(STEADY, spec, 3, at_s=[20.0, 50.0], plan=KillPlan(back_after_s=10.0, window_s=5.0))
    assert killed.num_failed == 0
    assert killed.num_moved > 0
    assert killed.p99_after_s == pytest.approx(killed.p99_before_s, rel=0.5)


def test_first_token_of_a_moved_request_is_the_one_its_caller_saw_first():
    loop = EventLoop()
    service = Service(spec_of(Seen()), trace(Arrival(0.0, 512, 1000)), loop)
    service.start()
    service.start()
    loop.at(5.0, lambda _: service.replica("group-1").kill())
    loop.at(5.1, lambda _: service.remove("group-1"))
    loop.run(lambda: service.num_open == 0)
    (outcome,) = service.outcomes
    assert outcome.ttft_s < 0.1 and outcome.num_attempts == 2
    assert 16 < outcome.finished_s < 18, "1000 steps, and the prompt once more with 300 tokens"


def test_request_waits_at_the_gateway_while_no_replica_is_ready():
    loop = EventLoop()
    service = Service(spec_of(RoundRobin()), trace(Arrival(0.0, 512, 2)), loop)
    loop.at(7.0, lambda _: service.start())
    loop.run(lambda: service.num_open == 0)
    assert 7.0 < service.outcomes[0].ttft_s < 7.2


def test_refused_request_has_failed():
    loop = EventLoop()
    service = Service(spec_of(Full()), trace(Arrival(0.0, 512, 2)), loop)
    service.start()
    loop.run(lambda: service.num_open == 0)
    assert service.outcomes[0].has_failed


def test_slow_replica_costs_what_the_policy_does_not_know():
    slowed = slow_replica(STEADY, spec_of(RoundRobin()), 2)
    assert 1.2 < slowed.ratio < 3


def test_rate_that_is_too_high_is_found_out():
    sustained = partial(sustains, spec=spec_of(RoundRobin()), num_replicas=1, attainment=0.9)
    assert sustained(STEADY)
    assert not sustained(STEADY.at_rate(100.0))


def test_replica_reports_what_the_engine_would():
    loop = EventLoop()
    service = Service(spec_of(RoundRobin()), STEADY, loop)
    load = service.replica(service.start()).load()
    assert isinstance(load, EngineLoad) and load.step_costs is not None and load.max_kv_tokens == 460_000
