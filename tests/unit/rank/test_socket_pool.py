"""The leader's end of the rank channel, against ranks that do right and ranks that do not."""

import threading
import time

import pytest

from core.errors import CheckpointError, ErrorInfo, OutOfMemory, RankDied, ReplicaFailed, StepTimeout
from core.progress import Progress
from engine.rank_pools.connections import RankConnections
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from parallel.plan import RowToken, StepPlan
from parallel.rank.channel import LeaderSocket
from parallel.rank.messages import Arrived, Enlist, Load, Plan, RankError, RankSpec, Shutdown
from tests.support.scripted_ranks import (
    Script,
    ScriptedLauncher,
    answer_plans,
    arrive,
    form_group,
    get_ready,
    join,
    stranger,
    well_behaved,
)

LOAD = Load(
    model="m",
    revision=None,
    dtype="float32",
    kv_dtype="float32",
    num_blocks=1,
    block_size=8,
    max_rows=1,
    max_model_len=8,
    max_step_tokens=8,
)


def ignore(progress: Progress) -> None:
    pass


@pytest.fixture
def make_pool():
    pools: list[SocketRankPool] = []

    def make(scripts: dict[int, Script] | None = None, world_size: int = 2, **options) -> SocketRankPool:
        # Scripted ranks do not beat.
        options = {"join_timeout_s": 5, "frozen_after_s": 60, **options}
        pool = SocketRankPool(ScriptedLauncher(scripts), world_size, 5, PoolOptions(**options))
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def ready_pool(make_pool):
    def make(scripts: dict[int, Script] | None = None, world_size: int = 2) -> SocketRankPool:
        pool = make_pool(scripts, world_size)
        pool.join(ignore)
        pool.load(LOAD, ignore)
        return pool

    return make


def launcher_of(pool: SocketRankPool) -> ScriptedLauncher:
    assert isinstance(pool._crew._launcher, ScriptedLauncher)
    return pool._crew._launcher


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_join_load_and_answer_in_order(make_pool, world_size: int):
    pool, seen = make_pool(world_size=world_size), list[Progress]()
    assert [joined.rank for joined in pool.join(seen.append)] == list(range(world_size))
    assert [loaded.rank for loaded in pool.load(LOAD, seen.append)] == list(range(world_size))
    assert {(progress.rank, progress.phase) for progress in seen} == {
        (rank, phase) for rank in range(world_size) for phase in ("connect", "load")
    }
    pool.submit(StepPlan(1, []))
    pool.submit(StepPlan(2, None))
    results = [pool.collect(5), pool.collect(5)]
    assert [(result.step, result.tokens) for result in results] == [(1, [RowToken(0, 7)]), (2, [RowToken(0, 7)])]


def test_the_secret_is_fresh_for_every_pool(make_pool):
    pools = [make_pool() for _ in range(2)]
    for pool in pools:
        pool.join(ignore)
    first, second = (launcher_of(pool).specs[0].secret for pool in pools)
    assert first != second and len(first) == 32


def test_strangers_and_ranks_of_another_generation_are_dropped_without_harm(make_pool):
    sockets = []

    def late(spec: RankSpec, channel: LeaderSocket) -> None:
        sockets.append(stranger(spec.leader_port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(64)))
        well_behaved(spec, channel)

    def from_the_past(spec: RankSpec, channel: LeaderSocket) -> None:
        join(spec, channel, Enlist(arrive(spec, channel).rank, 4))
        with pytest.raises(Exception, match="closed|gone"):
            channel.receive()

    pool = make_pool({0: late})
    assert len(pool.join(ignore)) == 2
    stale = make_pool({1: from_the_past}, join_timeout_s=0.5)
    with pytest.raises(ReplicaFailed, match="the ranks did not join in time"):
        stale.join(ignore)
    for sock in sockets:
        sock.close()


def test_a_process_that_ends_before_it_joins_is_reported_with_its_last_words(make_pool):
    pool = make_pool({1: lambda spec, channel: None})
    launcher_of(pool).exits[1] = "exit code 1: ImportError: no module named torch"
    with pytest.raises(RankDied, match="rank 1 ended before it joined: exit code 1: ImportError"):
        pool.join(ignore)


def test_a_rank_that_dies_while_the_others_join_is_seen(make_pool):
    def never(spec: RankSpec, channel: LeaderSocket) -> None:
        channel.receive()

    def leaves(spec: RankSpec, channel: LeaderSocket) -> None:
        channel.send(Arrived(spec.seat, 1))

    pool = make_pool({0: leaves, 1: never})
    with pytest.raises(RankDied, match="rank 0 died"):
        pool.join(ignore)


def test_what_a_rank_reports_while_loading_keeps_its_class_and_message(make_pool):
    def corrupt(spec: RankSpec, channel: LeaderSocket) -> None:
        form_group(spec, channel)
        channel.receive()
        channel.send(RankError(spec.seat, ErrorInfo.of(CheckpointError("model.safetensors: truncated")), "Traceback"))

    pool = make_pool({1: corrupt})
    pool.join(ignore)
    with pytest.raises(CheckpointError, match="^model.safetensors: truncated$"):
        pool.load(LOAD, ignore)


def test_an_error_of_no_class_of_ours_becomes_replica_failed(make_pool):
    def buggy(spec: RankSpec, channel: LeaderSocket) -> None:
        channel.send(RankError(spec.seat, ErrorInfo("what_is_this", "odd")))
        channel.receive()

    with pytest.raises(ReplicaFailed, match="rank 1 failed: odd"):
        make_pool({1: buggy}).join(ignore)


def leaves_at_first_plan(spec: RankSpec, channel: LeaderSocket) -> None:
    get_ready(spec, channel)
    channel.receive()


def complains_about_a_peer(spec: RankSpec, channel: LeaderSocket) -> None:
    get_ready(spec, channel)
    channel.receive()
    channel.send(RankError(spec.seat, ErrorInfo.of(RankDied("all_gather failed: connection reset"))))
    channel.receive()


def is_silent(spec: RankSpec, channel: LeaderSocket) -> None:
    get_ready(spec, channel)
    while isinstance(channel.receive(), Plan):
        pass


def test_a_dead_rank_is_seen_at_once_while_rank_0_is_awaited(ready_pool):
    pool = ready_pool({0: is_silent, 1: leaves_at_first_plan})
    pool.submit(StepPlan(1, []))
    started = time.monotonic()
    with pytest.raises(RankDied, match="rank 1 died"):
        pool.collect(60)
    assert time.monotonic() - started < 2


def test_the_dead_rank_is_named_and_not_the_survivor_that_complains(ready_pool):
    def dies_a_moment_later(spec: RankSpec, channel: LeaderSocket) -> None:
        get_ready(spec, channel)
        channel.receive()
        complained.wait(5)

    def complains_first(spec: RankSpec, channel: LeaderSocket) -> None:
        get_ready(spec, channel)
        channel.receive()
        channel.send(RankError(spec.seat, ErrorInfo.of(RankDied("all_gather failed"))))
        complained.set()
        channel.receive()

    complained = threading.Event()
    pool = ready_pool({0: complains_first, 1: is_silent, 2: dies_a_moment_later}, world_size=3)
    launcher_of(pool).exits[2] = "killed by SIGKILL"
    pool.submit(StepPlan(1, []))
    with pytest.raises(RankDied, match="^rank 2 died: killed by SIGKILL$"):
        pool.collect(5)


def test_a_complaint_without_a_corpse_is_raised_itself(ready_pool):
    pool = ready_pool({0: complains_about_a_peer, 1: is_silent})
    pool.submit(StepPlan(1, []))
    with pytest.raises(RankDied, match="all_gather failed: connection reset"):
        pool.collect(5)


def test_a_rank_that_ran_out_of_memory_is_the_cause_and_not_those_it_left_behind(ready_pool):
    def out_of_memory(spec: RankSpec, channel: LeaderSocket) -> None:
        get_ready(spec, channel)
        channel.receive()
        channel.send(RankError(spec.seat, ErrorInfo.of(OutOfMemory("rank 1 ran out of memory"))))

    pool = ready_pool({0: complains_about_a_peer, 1: out_of_memory})
    pool.submit(StepPlan(1, []))
    with pytest.raises(OutOfMemory, match="rank 1 ran out of memory"):
        pool.collect(5)


def test_a_step_that_takes_too_long_is_a_step_timeout_and_stays_one(ready_pool):
    pool = ready_pool({0: is_silent})
    pool.submit(StepPlan(9, []))
    with pytest.raises(StepTimeout, match="step 9 did not finish within 0.05 s"):
        pool.collect(0.05)
    with pytest.raises(StepTimeout):
        pool.submit(StepPlan(10, []))


def test_closing_asks_ranks_to_leave_before_they_are_stopped(ready_pool):
    heard: list[object] = []

    def listens(spec: RankSpec, channel: LeaderSocket) -> None:
        get_ready(spec, channel)
        heard.append(channel.receive())

    pool = ready_pool({0: listens, 1: listens})
    pool.close()
    pool.close()
    assert heard == [Shutdown(), Shutdown()]
    assert launcher_of(pool).num_stops == 1


def test_ranks_that_do_not_leave_are_stopped_after_the_grace(make_pool):
    def deaf(spec: RankSpec, channel: LeaderSocket) -> None:
        get_ready(spec, channel)
        while isinstance(channel.receive(), Plan | Shutdown):
            pass

    pool = make_pool({0: deaf, 1: deaf}, close_grace_s=0.1)
    pool.join(ignore)
    pool.load(LOAD, ignore)
    started = time.monotonic()
    pool.close()
    assert 0.1 <= time.monotonic() - started < 2


def test_close_from_another_thread_ends_a_collect(ready_pool):
    pool = ready_pool({0: is_silent})
    pool.submit(StepPlan(1, []))
    threading.Timer(0.05, pool.close).start()
    with pytest.raises(RankDied):
        pool.collect(30)


def test_waking_ends_a_receive_though_every_rank_has_left_already():
    connections = RankConnections()
    arrivals = []
    waiting = threading.Thread(target=lambda: arrivals.append(connections.receive(60)))
    waiting.start()
    connections.wake()
    waiting.join(10)
    connections.close()
    assert arrivals == [[]]
    assert connections.receive(60) == []


def test_close_from_another_thread_ends_a_join(make_pool):
    def never(spec: RankSpec, channel: LeaderSocket) -> None:
        channel.receive()

    pool = make_pool({0: never, 1: never}, join_timeout_s=30)
    threading.Timer(0.05, pool.close).start()
    with pytest.raises(RankDied):
        pool.join(ignore)


def test_three_plans_under_way_are_refused(ready_pool):
    pool = ready_pool({0: is_silent})
    pool.submit(StepPlan(1, []))
    pool.submit(StepPlan(2, []))
    with pytest.raises(AssertionError):
        pool.submit(StepPlan(3, []))


def test_a_host_that_is_not_ours_is_named(make_pool):
    with pytest.raises(ReplicaFailed, match=r"192\.0\.2\.1"):
        make_pool(leader_host="192.0.2.1").join(ignore)


def test_a_rank_that_leaves_between_steps_is_found_by_the_next(ready_pool):
    def one_step(spec: RankSpec, channel: LeaderSocket) -> None:
        get_ready(spec, channel)
        assert isinstance(channel.receive(), Plan)

    pool = ready_pool({0: lambda spec, channel: (get_ready(spec, channel), answer_plans(spec, channel)), 1: one_step})
    pool.submit(StepPlan(1, []))
    with pytest.raises(RankDied, match="rank 1"):
        # Rank 0 answers at once: on a busy machine many steps pass before the other's end is seen.
        for step in range(2, 100_000):
            pool.collect(5)
            pool.submit(StepPlan(step, []))
