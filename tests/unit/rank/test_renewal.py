"""After a rank died the others form the next generation, and nothing of an earlier one is taken for an answer."""

import threading
import time

import pytest

from core.errors import ErrorInfo, OutOfMemory, RankDied, StepTimeout
from core.frames import ConnectionLost
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from parallel.plan import RowToken, SampledTokens, StepPlan, StepResult
from parallel.rank.channel import LeaderSocket
from parallel.rank.messages import Arrived, Enlist, Loaded, RankError, RankSpec, Result
from tests.support.scripted_ranks import (
    Script,
    ScriptedLauncher,
    answer_plans,
    arrive,
    await_enlistment,
    form_group,
    get_ready,
    join,
)
from tests.support.small_plans import load_of

LOAD = load_of("m")
STEP = StepPlan(1, [])


@pytest.fixture
def broken_pool():
    """Return a maker of a pool whose first generation broke, with its launcher."""
    pools: list[SocketRankPool] = []

    def make(scripts: dict[int, Script], world_size: int = 2, breaks_with=RankDied, **options):
        launcher = ScriptedLauncher(scripts)
        settings = {"join_timeout_s": 5, "frozen_after_s": 60, "rejoin_timeout_s": 1, **options}
        pool = SocketRankPool(launcher, world_size, 0, PoolOptions(**settings))
        pools.append(pool)
        start(pool)
        pool.submit(STEP)
        with pytest.raises(breaks_with):
            pool.collect(0.3)
        return pool, launcher

    yield make
    for pool in pools:
        pool.close()


def start(pool: SocketRankPool):
    pool.join(lambda progress: None)
    return pool.load(LOAD, lambda progress: None)


def answers(pool: SocketRankPool) -> list[RowToken]:
    pool.submit(STEP)
    return pool.collect(5).tokens


def dies_at_first_plan(spec: RankSpec, channel: LeaderSocket) -> None:
    get_ready(spec, channel)
    channel.receive()


def survives(spec: RankSpec, channel: LeaderSocket) -> None:
    """Lose a peer in the first step, complain, and be well-behaved from then on."""
    get_ready(spec, channel)
    channel.receive()
    channel.send(RankError(spec.seat, ErrorInfo.of(RankDied("all_reduce failed"))))
    go_on(spec, channel)


def is_patient(spec: RankSpec, channel: LeaderSocket) -> None:
    """Do not finish the first step, but know of no reason."""
    get_ready(spec, channel)
    go_on(spec, channel)


def is_stuck(spec: RankSpec, channel: LeaderSocket) -> None:
    """Read what the leader says, and answer nothing."""
    get_ready(spec, channel)
    while channel.receive():
        pass


def go_on(spec: RankSpec, channel: LeaderSocket) -> None:
    order = await_enlistment(channel)
    while True:
        get_ready(spec, channel, order)
        order = answer_plans(spec, channel)


@pytest.mark.parametrize("victim", [0, 1])
def test_only_the_dead_rank_is_started_anew(broken_pool, victim: int):
    pool, launcher = broken_pool({1 - victim: survives, victim: dies_at_first_plan})
    pool.renew(1)
    assert [loaded.rank for loaded in start(pool)] == [0, 1]
    assert answers(pool) == [RowToken(0, 7)]
    assert [spec.seat for spec in launcher.specs] == [0, 1, victim]


def test_results_of_a_generation_that_is_over_are_never_taken(broken_pool):
    def answers_late(spec: RankSpec, channel: LeaderSocket) -> None:
        get_ready(spec, channel)
        channel.receive()
        is_given_up.wait(5)
        # What it computed before comes when the leader has given it up, and again when it was told so.
        late = Result(StepResult(1, SampledTokens.of([RowToken(0, 666)]), 0.0))
        channel.send(late)
        order = await_enlistment(channel)
        channel.send(late)
        get_ready(spec, channel, order)
        answer_plans(spec, channel)

    is_given_up = threading.Event()
    pool, _ = broken_pool({0: answers_late, 1: dies_at_first_plan})
    is_given_up.set()
    pool.renew(1)
    start(pool)
    assert answers(pool) == [RowToken(0, 7)]


def test_a_survivor_that_joins_a_generation_that_is_over_is_replaced(broken_pool):
    def lives_in_the_past(spec: RankSpec, channel: LeaderSocket) -> None:
        get_ready(spec, channel)
        channel.receive()
        order = await_enlistment(channel)
        get_ready(spec, channel, Enlist(order.rank, 0))

    pool, launcher = broken_pool({0: lives_in_the_past, 1: dies_at_first_plan}, rejoin_timeout_s=0.5)
    pool.renew(1)
    start(pool)
    assert answers(pool) == [RowToken(0, 7)]
    assert sorted(spec.seat for spec in launcher.specs) == [0, 0, 1, 1]


def test_a_rank_that_is_silent_when_the_time_for_a_step_is_up_is_the_cause_and_is_replaced(broken_pool):
    # Scripted ranks have no pulse.
    pool, launcher = broken_pool({0: is_patient}, world_size=1, breaks_with=RankDied, frozen_after_s=0.5)
    pool.renew(1)
    start(pool)
    assert answers(pool) == [RowToken(0, 7)]
    assert [spec.seat for spec in launcher.specs] == [0, 0], "it was not waited for"


def test_a_survivor_that_is_lost_while_it_is_awaited_breaks_nothing_once_more(broken_pool):
    pool, launcher = broken_pool({0: is_stuck, 1: dies_at_first_plan}, rejoin_timeout_s=60)
    pool.renew(1)
    pool._note_lost(0, "frozen: no sign of life for 2.0 s")
    start(pool)
    assert answers(pool) == [RowToken(0, 7)]
    assert sorted(spec.seat for spec in launcher.specs) == [0, 0, 1, 1]


def test_a_survivor_that_does_not_come_back_in_time_is_replaced(broken_pool):
    pool, launcher = broken_pool({0: is_patient, 1: is_stuck}, breaks_with=StepTimeout, rejoin_timeout_s=0.5)
    pool.renew(1)
    start(pool)
    assert answers(pool) == [RowToken(0, 7)]
    assert [spec.seat for spec in launcher.specs] == [0, 1, 1]
    assert launcher.ended == [1]


def test_a_rank_that_failed_by_itself_is_replaced_though_its_peer_only_complained(broken_pool):
    def out_of_memory(spec: RankSpec, channel: LeaderSocket) -> None:
        get_ready(spec, channel)
        channel.receive()
        channel.send(RankError(spec.seat, ErrorInfo.of(OutOfMemory("rank 1 ran out of memory"))))
        while channel.receive():
            pass

    pool, launcher = broken_pool({0: survives, 1: out_of_memory}, breaks_with=OutOfMemory)
    pool.renew(1)
    start(pool)
    assert [spec.seat for spec in launcher.specs] == [0, 1, 1]


def test_after_a_failure_of_the_leader_alone_every_rank_is_kept():
    launcher = ScriptedLauncher()
    pool = SocketRankPool(launcher, 2, 0, PoolOptions(frozen_after_s=60))
    start(pool)
    pool.renew(1)
    start(pool)
    assert answers(pool) == [RowToken(0, 7)]
    assert len(launcher.specs) == 2
    pool.close()


def test_a_successor_is_given_the_memory_that_its_place_had_at_first(broken_pool):
    pool, _ = broken_pool({0: survives, 1: dies_at_first_plan})
    before = [(joined.total_memory_bytes, joined.free_memory_bytes) for joined in pool._memory._first.values()]
    pool.renew(1)
    joined = pool.join(lambda progress: None)
    assert [(rank.total_memory_bytes, rank.free_memory_bytes) for rank in joined] == before


def test_generations_follow_each_other(broken_pool):
    pool, launcher = broken_pool({0: survives, 1: dies_at_first_plan})
    for generation in (1, 2, 3):
        pool.renew(generation)
        start(pool)
        assert answers(pool) == [RowToken(0, 7)]
    assert len(launcher.specs) == 3


def test_a_spare_takes_the_place_of_the_dead_and_another_one_is_started(broken_pool):
    pool, launcher = broken_pool({0: survives, 1: dies_at_first_plan}, num_spares=1)
    pool.renew(1)
    start(pool)
    assert answers(pool) == [RowToken(0, 7)]
    pool._crew._spare._thread.join(5)
    # The first spare sat in the third seat; the next one has the dead rank's.
    assert [spec.seat for spec in launcher.specs] == [0, 1, 2, 1]


def test_the_spare_of_a_single_rank_has_loaded_before_it_is_needed(broken_pool):
    loads: list[object] = []

    def ready_in_advance(spec: RankSpec, channel: LeaderSocket) -> None:
        order = None
        while True:
            get_ready(spec, channel, order)
            loads.append(order)
            order = answer_plans(spec, channel)

    pool, launcher = broken_pool({0: dies_at_first_plan, 1: ready_in_advance}, world_size=1, num_spares=1)
    pool._crew._spare._thread.join(5)
    assert loads == [None], "loaded as the rank of a group of its own"
    pool.renew(1)
    start(pool)
    assert loads == [None, Enlist(0, 1)]
    pool.submit(STEP)
    # Scripts answer as rank 0 by their seat, and this one's is another.
    with pytest.raises(StepTimeout):
        pool.collect(0.1)


def test_a_spare_without_memory_for_the_weights_waits_without_them(broken_pool):
    seen: list[object] = []

    def small(spec: RankSpec, channel: LeaderSocket) -> None:
        recording = RecordingChannel(channel, seen)
        join(spec, recording, arrive(spec, recording))
        form_group(spec, recording, await_enlistment(recording))
        recording.receive()

    pool, _ = broken_pool({0: needs_much_memory, 1: small}, world_size=1, num_spares=1)
    pool._crew._spare._thread.join(5)
    pool.renew(1)
    pool.join(lambda progress: None)
    assert seen == [Enlist(0, 0), Enlist(0, 1)]


class RecordingChannel:
    """Passes on to a channel; remembers what was received."""

    def __init__(self, channel: LeaderSocket, seen: list[object]) -> None:
        self._channel = channel
        self._seen = seen

    def send(self, message) -> None:
        self._channel.send(message)

    def receive(self):
        message = self._channel.receive()
        self._seen.append(message)
        return message


def needs_much_memory(spec: RankSpec, channel: LeaderSocket) -> None:
    form_group(spec, channel)
    channel.receive()
    channel.send(Loaded(0, weight_bytes=10**15, kv_bytes=0, load_time_s=0.0))
    channel.receive()


def test_a_pool_that_is_closed_while_survivors_are_awaited_says_so(broken_pool):
    pool, _ = broken_pool({0: is_stuck, 1: dies_at_first_plan}, rejoin_timeout_s=30)
    pool.renew(1)
    threading.Timer(0.05, pool.close).start()
    began_s = time.monotonic()
    with pytest.raises((RankDied, ConnectionLost)):
        pool.join(lambda progress: None)
    assert time.monotonic() - began_s < 5


def test_a_spare_that_has_died_meanwhile_is_no_spare(broken_pool):
    def arrives_and_leaves(spec: RankSpec, channel: LeaderSocket) -> None:
        channel.send(Arrived(spec.seat, 1))

    pool, launcher = broken_pool({0: survives, 1: dies_at_first_plan, 2: arrives_and_leaves}, num_spares=1)
    launcher._threads[2].join(5)
    pool.renew(1)
    start(pool)
    assert answers(pool) == [RowToken(0, 7)]
    assert [spec.seat for spec in launcher.specs][:4] == [0, 1, 2, 1]
