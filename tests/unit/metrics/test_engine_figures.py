"""What engines, ranks, routers and supervisors count for dashboards: red when a queue's reason or a step is lost."""

import pytest

from cluster.routing.base import GroupView, RoutingRequest
from cluster.routing.decisions import Decisions, why_picked
from cluster.routing.router import Router
from core.errors import Overloaded
from engine.figures import EngineFigures
from engine.step_times import STEP_S, StepTimes
from parallel.rank.messages import RankPace
from parallel.rank.pace import TELL_EVERY_S, Pace
from tests.support.engines import Collector, make_config, make_engine, make_request, run_until_idle, tiny_spec
from tests.support.fake_clock import FakeClock
from tests.support.fake_ranks import FakeRankPool


def engine_of(num_blocks=64, world_size=1, **scheduler):
    ranks = FakeRankPool(vocab_size=1000, world_size=world_size)
    return make_engine(ranks, num_blocks, make_config(scheduler=scheduler), tiny_spec(vocab_size=1000))


def figures_of(engine) -> EngineFigures:
    figures = engine.load().figures
    assert figures is not None
    return figures


def test_every_committed_step_is_in_the_histogram():
    engine = engine_of()
    engine.submit(make_request("a", range(8), max_tokens=5), Collector())
    run_until_idle(engine)
    figures = figures_of(engine)
    assert sum(figures.step_counts) == engine.load().num_steps == 5
    assert len(figures.step_counts) == len(STEP_S) + 1
    assert set(figures.leader_s) == {"intake", "plan", "submit", "tell", "publish", "receive", "commit"}


def test_a_step_is_counted_up_to_its_limit():
    times = StepTimes()
    for seconds in (STEP_S[0], STEP_S[0] * 1.01, 1e9):
        times.record(seconds)
    counts = times.counts()
    assert (counts[0], counts[1], counts[-1]) == (1, 1, 1)
    assert times.total_s > 1e9


def test_paces_of_all_ranks_are_told():
    engine = engine_of(world_size=3)
    engine.submit(make_request("a", range(8), max_tokens=2), Collector())
    run_until_idle(engine)
    assert [pace.rank for pace in figures_of(engine).paces] == [0, 1, 2]


def test_the_queue_waits_for_rows():
    engine = engine_of(max_running=1)
    for name in "ab":
        engine.submit(make_request(name, range(8), max_tokens=9), Collector())
    engine.step()
    engine.step()
    assert engine.load().num_waiting == 1
    assert figures_of(engine).waits_for == "rows"


def test_the_queue_waits_for_kv_blocks():
    engine = engine_of(num_blocks=4, max_running=8)
    for name in "ab":
        engine.submit(make_request(name, range(16), max_tokens=9), Collector())
    engine.step()
    engine.step()
    assert engine.load().num_waiting == 1
    assert figures_of(engine).waits_for == "kv_blocks"


def test_requests_that_were_put_back_are_told_apart_until_they_run_again():
    engine, sink = engine_of(num_blocks=8, max_running=3), Collector()
    for number in range(3):
        engine.submit(make_request(f"r{number}", range(number, number + 14), max_tokens=30), sink)
    most = 0
    for _ in range(40):
        engine.step()
        figures = figures_of(engine)
        assert 0 <= figures.num_preempted_waiting <= engine.load().num_waiting
        most = max(most, figures.num_preempted_waiting)
    assert most > 0
    run_until_idle(engine)
    assert figures_of(engine).num_preempted_waiting == 0


def test_a_rank_tells_its_pace_once_a_second():
    clock = FakeClock()
    pace = Pace(2, clock.now_s)
    assert pace.record(0.25) == RankPace(2, 1, 0.25)
    assert pace.record(0.25) is None
    clock.advance(TELL_EVERY_S)
    assert pace.record(0.5) == RankPace(2, 3, 1.0)


@pytest.mark.parametrize(
    ("cached", "why"),
    [([0], "only_choice"), ([0, 0], "least_cost"), ([64, 0], "cached_prefix"), ([0, 64], "cache_passed_over")],
)
def test_a_choice_says_what_it_weighed(cached, why):
    groups = [GroupView(f"g{number}", num_cached_tokens=num) for number, num in enumerate(cached)]
    assert why_picked(groups[0], groups) == why


def test_a_router_counts_every_decision_and_every_refusal():
    class Fussy:
        def pick(self, groups, request):
            if request.num_tokens > 100:
                raise Overloaded("too long")
            return groups[0].group_id

    router = Router(Fussy(), clock=FakeClock())
    router.reserve(["a", "b"], RoutingRequest(10, 5)).release()
    with pytest.raises(Overloaded):
        router.reserve(["a", "b"], RoutingRequest(200, 5))
    decisions: Decisions = router.decisions
    assert dict(decisions.by_reason) == {"least_cost": 1, "refused": 1}
    assert (decisions.num_prompt_tokens, decisions.num_cached_tokens) == (10, 0)
