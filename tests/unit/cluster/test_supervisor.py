"""One thread runs the supervisor; tests wait for its announcements, never for time."""

import threading
from contextlib import contextmanager

from cluster.supervisor import CheckedModel, Supervisor
from core.errors import CheckpointError, NotReady, PlacementImpossible, RankDied, ReplicaFailed, Unshardable
from tests.support.fake_clock import FakeClock
from tests.support.fake_group import (
    TIMEOUT_S,
    Changes,
    FakeEngine,
    FakeRankSource,
    FakeStarts,
    group_config,
)


@contextmanager
def supervised(starts, ranks=None, config=None, clock=None, check=lambda config, on_progress: CheckedModel(8192)):
    changes = Changes()
    supervisor = Supervisor(
        config or group_config(), check, ranks or FakeRankSource(), starts, clock or FakeClock(), changes
    )
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield supervisor, changes
    finally:
        supervisor.close(NotReady("test over"))
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def state_is(supervisor, *states):
    return lambda: supervisor.snapshot().state in states


def test_a_loaded_group_is_ready_and_hands_out_its_engine():
    engine = FakeEngine()
    with supervised(FakeStarts(engine)) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        assert supervisor.snapshot().engine is engine
        assert supervisor.snapshot().generation == 0


def test_the_ranks_of_a_broken_generation_form_the_next_one_which_serves():
    first, second, ranks = FakeEngine(), FakeEngine(), FakeRankSource()
    with supervised(FakeStarts(first, second), ranks) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        first.breaks(RankDied("rank 1 died"))
        changes.wait_for(lambda: supervisor.snapshot().engine is second)
        assert supervisor.snapshot().generation == 1
        assert supervisor.snapshot().error is None
        assert ranks.pools[0].generations == [1]
        assert not ranks.pools[0].is_closed
        assert not ranks.is_closed, "the placement group must survive an in-place restart"


def test_the_second_failure_in_a_row_replaces_every_rank():
    engines, ranks = [FakeEngine() for _ in range(3)], FakeRankSource()
    with supervised(FakeStarts(*engines), ranks) as (supervisor, changes):
        for engine in engines[:2]:
            changes.wait_for(lambda engine=engine: supervisor.snapshot().engine is engine)
            engine.breaks(RankDied("rank 1 died"))
        changes.wait_for(lambda: supervisor.snapshot().engine is engines[2])
        assert ranks.pools[0].is_closed
        assert ranks.pools[0].generations == [1]
        assert list(ranks.pools) == [0, 2]


def test_ranks_that_never_served_are_not_kept():
    ranks = FakeRankSource()
    with supervised(FakeStarts(RankDied("while loading"), FakeEngine()), ranks) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        assert ranks.pools[0].is_closed
        assert list(ranks.pools) == [0, 1]


def test_ranks_that_cannot_be_renewed_are_replaced():
    first, second, ranks = FakeEngine(), FakeEngine(), FakeRankSource()
    with supervised(FakeStarts(first, second), ranks) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        ranks.pools[0].renewal_fails_with = ReplicaFailed("no port is free")
        first.breaks(RankDied("rank 1 died"))
        changes.wait_for(lambda: supervisor.snapshot().engine is second)
        assert ranks.pools[0].is_closed
        assert list(ranks.pools) == [0, 2]


def test_a_group_that_drains_while_it_restarts_leaves_no_rank_behind():
    first, ranks = FakeEngine(), FakeRankSource()
    config = group_config()
    restart = config.restart.model_copy(update={"backoff_s": 0.0})
    with supervised(FakeStarts(first), ranks, config.model_copy(update={"restart": restart})) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        supervisor.drain()
        first.breaks(RankDied("while draining"))
        changes.wait_for(lambda: ranks.is_closed)
        assert ranks.pools[0].is_closed


def test_while_restarting_the_group_says_why():
    first, entered, go_on = FakeEngine(), threading.Event(), threading.Event()

    class SlowSecondStart(FakeStarts):
        def __call__(self, config, ranks, on_progress):
            if self.num_starts == 1:
                entered.set()
                assert go_on.wait(TIMEOUT_S)
            return super().__call__(config, ranks, on_progress)

    with supervised(SlowSecondStart(first, FakeEngine())) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        first.breaks(RankDied("rank 1 died"))
        assert entered.wait(TIMEOUT_S)
        now = supervisor.snapshot()
        assert now.state == "restarting"
        assert now.engine is None
        assert isinstance(now.error, RankDied)
        go_on.set()
        changes.wait_for(state_is(supervisor, "ready"))


def test_ranks_that_die_while_loading_are_tried_again():
    with supervised(FakeStarts(RankDied("oops"), FakeEngine())) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        assert supervisor.snapshot().generation == 1


def test_after_three_restarts_in_a_row_the_group_gives_up():
    starts, ranks = FakeStarts(*[RankDied(f"death {n}") for n in range(9)]), FakeRankSource()
    with supervised(starts, ranks) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "failed"))
        assert starts.num_starts == 4
        assert str(supervisor.snapshot().error) == "death 3"


def test_a_group_that_gave_up_gives_its_room_back():
    ranks = FakeRankSource()
    with supervised(FakeStarts(RankDied("x")), ranks, group_config(max_attempts=0)) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "failed"))
    assert ranks.is_closed
    assert ranks.pools[0].is_closed


def test_a_startup_error_is_never_tried_again():
    starts = FakeStarts(CheckpointError("model.safetensors: truncated"))
    with supervised(starts) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "failed"))
        assert starts.num_starts == 1
        assert isinstance(supervisor.snapshot().error, CheckpointError)


def test_a_model_that_cannot_work_is_refused_before_any_rank_is_placed():
    ranks = FakeRankSource()

    def refuse(config, on_progress):
        raise Unshardable("3 kv heads cannot be split over 4 ranks")

    with supervised(FakeStarts(), ranks, check=refuse) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "failed"))
        assert isinstance(supervisor.snapshot().error, Unshardable)
        assert not ranks.pools


def test_a_restart_does_not_check_the_model_again():
    checks, first, second = [], FakeEngine(), FakeEngine()
    with supervised(
        FakeStarts(first, second), check=lambda config, on_progress: checks.append(config) or CheckedModel(8192)
    ) as (
        supervisor,
        changes,
    ):
        changes.wait_for(state_is(supervisor, "ready"))
        first.breaks(RankDied("rank 1 died"))
        changes.wait_for(lambda: supervisor.snapshot().engine is second)
        assert len(checks) == 1


def test_a_fetch_that_broke_off_is_tried_again_and_pins_the_version_it_found():
    answers = [ReplicaFailed("S3 is away"), CheckedModel(8192, "version-1")]

    def check(config, on_progress):
        answer = answers.pop(0)
        if isinstance(answer, ReplicaFailed):
            raise answer
        return answer

    with supervised(FakeStarts(FakeEngine()), check=check) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        assert supervisor.snapshot().revision == "version-1"
        assert supervisor.snapshot().generation == 1


def test_no_room_for_the_ranks_is_a_startup_error():
    ranks = FakeRankSource()
    ranks.refusals.append(PlacementImpossible("no room"))
    with supervised(FakeStarts(), ranks) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "failed"))
        assert isinstance(supervisor.snapshot().error, PlacementImpossible)


def test_a_generation_that_served_long_enough_forgives_the_failures_before_it():
    clock, engines = FakeClock(), [FakeEngine() for _ in range(4)]
    with supervised(FakeStarts(*engines), config=group_config(max_attempts=1), clock=clock) as (
        supervisor,
        changes,
    ):
        for engine in engines[:3]:
            changes.wait_for(lambda engine=engine: supervisor.snapshot().engine is engine)
            clock.advance(60.0)
            engine.breaks(RankDied("once a minute"))
        changes.wait_for(lambda: supervisor.snapshot().engine is engines[3])


def test_a_crash_loop_that_loads_fine_each_time_still_gives_up():
    engines = [FakeEngine() for _ in range(2)]
    with supervised(FakeStarts(*engines), config=group_config(max_attempts=1)) as (supervisor, changes):
        for engine in engines:
            changes.wait_for(lambda engine=engine: supervisor.snapshot().engine is engine)
            engine.breaks(RankDied("at the first step"))
        changes.wait_for(state_is(supervisor, "failed"))


def test_an_engine_bug_becomes_a_restart_not_a_dead_thread():
    with supervised(FakeStarts(ZeroDivisionError("bug"), FakeEngine())) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        assert supervisor.snapshot().generation == 1


def test_a_draining_group_whose_ranks_die_does_not_come_back():
    engine, starts = FakeEngine(), FakeStarts()
    starts = FakeStarts(engine)
    with supervised(starts) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        supervisor.drain()
        engine.breaks(RankDied("while draining"))
        changes.wait_for(state_is(supervisor, "failed"))
        assert starts.num_starts == 1


def test_progress_is_the_latest_of_each_rank_and_starts_over_with_a_generation():
    first = FakeEngine()
    with supervised(FakeStarts(first, FakeEngine())) as (supervisor, changes):
        changes.wait_for(state_is(supervisor, "ready"))
        assert [(p.rank, p.percent) for p in supervisor.snapshot().progress] == [(0, 50)]


def test_closing_while_ranks_load_ends_the_thread():
    entered = threading.Event()
    ranks = FakeRankSource()

    def blocked_start(config, pool, on_progress):
        entered.set()
        closed = threading.Event()
        while not ranks.pools[0].is_closed:
            closed.wait(0.001)
        raise RankDied("the pool was closed")

    with supervised(blocked_start, ranks) as (supervisor, _):
        assert entered.wait(TIMEOUT_S)
    assert ranks.is_closed
    assert supervisor.snapshot().state == "starting"
