from contextlib import contextmanager

import pytest

from cluster.replica_group import GroupIdentity, ReplicaGroup
from cluster.status import ChannelAddress
from cluster.supervisor import CheckedModel
from core.errors import CheckpointError, Draining, NotReady, RankDied, ReplicaFailed
from tests.support.fake_clock import FakeClock
from tests.support.fake_group import (
    Changes,
    FakeEngine,
    FakeRankSource,
    FakeStarts,
    a_request,
    group_config,
)


@contextmanager
def running_group(*outcomes, config=None, clock=None, pause=lambda s: None):
    changes = Changes()
    group = ReplicaGroup(
        config or group_config(),
        GroupIdentity(group_id="m#1", application="m"),
        lambda config, on_progress: CheckedModel(8192),
        FakeRankSource(),
        FakeStarts(*outcomes),
        clock=clock or FakeClock(),
        on_change=changes,
        pause=pause,
    )
    group.start()
    try:
        yield group, changes
    finally:
        group.close()


def state_is(group, state):
    return lambda: group.status().state == state


def test_a_group_that_is_not_started_refuses_with_a_time_to_come_back():
    check = pytest.fail
    group = ReplicaGroup(group_config(), GroupIdentity("m#1", "m"), check, FakeRankSource(), FakeStarts())
    with pytest.raises(NotReady) as refusal:
        group.submit(a_request(), lambda events: None)
    assert refusal.value.retry_after_s is not None
    assert group.load() is None
    assert group.failure() is None


def test_a_ready_group_passes_requests_to_its_engine():
    engine = FakeEngine()
    with running_group(engine) as (group, changes):
        changes.wait_for(state_is(group, "ready"))
        group.submit(a_request("r1"), lambda events: None)
        assert set(engine.open) == {"r1"}
        load = group.load()
        assert load is not None
        assert load.num_running == 1
        group.cancel("r1")
        assert not engine.open


def test_an_open_request_ends_in_the_error_that_broke_the_group():
    engine, events = FakeEngine(), []
    with running_group(engine, FakeEngine()) as (group, changes):
        changes.wait_for(state_is(group, "ready"))
        group.submit(a_request(), events.extend)
        engine.breaks(RankDied("rank 1 died"))
        changes.wait_for(lambda: group.status().generation == 1 and group.status().state == "ready")
        assert [event.error.code for event in events] == ["rank_died"]


def test_status_describes_the_model_and_the_channel_to_gateways():
    with running_group(FakeEngine()) as (group, changes):
        address = ChannelAddress("127.0.0.1", 4711, b"secret")
        group.listens_at(address)
        changes.wait_for(state_is(group, "ready"))
        status = group.status()
        assert (status.group_id, status.application, status.model) == ("m#1", "m", "m")
        assert status.channel == address
        assert (status.max_model_len, status.num_kv_blocks, status.block_size) == (2048, 100, 16)
        assert status.ops == list(FakeEngine.ops)
        assert status.progress == []


def test_gateways_learn_the_context_before_the_ranks_are_loaded_and_keep_it_over_a_restart():
    with running_group(RankDied("while loading"), RankDied("again"), config=group_config(max_attempts=1)) as (
        group,
        changes,
    ):
        changes.wait_for(state_is(group, "failed"))
        assert group.status().max_model_len == 8192


def test_a_failed_group_says_why_in_status_and_to_the_health_check():
    with running_group(CheckpointError("model.gguf: truncated")) as (group, changes):
        changes.wait_for(state_is(group, "failed"))
        failure = group.failure()
        assert isinstance(failure, CheckpointError)
        error = group.status().error
        assert error is not None
        assert error.code == "checkpoint_error"
        with pytest.raises(ReplicaFailed, match="truncated"):
            group.submit(a_request(), lambda events: None)


def test_an_in_place_restart_is_healthy():
    with running_group(RankDied("x"), FakeEngine()) as (group, changes):
        changes.wait_for(state_is(group, "ready"))
        assert group.failure() is None


def test_drain_waits_for_open_requests_and_refuses_new_ones():
    engine, clock, refusals = FakeEngine(), FakeClock(), []

    def finish_after_three_looks(seconds):
        clock.advance(seconds)
        with pytest.raises(Draining) as refusal:
            group.submit(a_request("late"), lambda events: None)
        refusals.append(refusal.value)
        if len(refusals) == 3:
            engine.finish("r1")

    with running_group(engine, clock=clock, pause=finish_after_three_looks) as (group, changes):
        changes.wait_for(state_is(group, "ready"))
        group.submit(a_request("r1"), lambda events: None)
        assert group.drain(timeout_s=5.0)
        assert len(refusals) == 3
        assert group.status().state == "draining"


def test_drain_gives_up_at_its_timeout_and_close_ends_the_rest_with_an_error():
    engine, clock, events = FakeEngine(), FakeClock(), []

    def tick(seconds):
        clock.advance(seconds)

    with running_group(engine, clock=clock, pause=tick) as (group, changes):
        changes.wait_for(state_is(group, "ready"))
        group.submit(a_request(), events.extend)
        assert not group.drain(timeout_s=1.0)
        group.close()
        assert [event.error.code for event in events] == ["draining"]
