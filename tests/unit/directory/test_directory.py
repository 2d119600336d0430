"""GroupDirectory on a fake clock and fake transports: red if a group is lost, kept too long, or routed to wrongly."""

import asyncio
import logging

import pytest

from cluster.routing.base import RoutingRequest
from cluster.routing.policies import LeastOutstandingTokens
from cluster.routing.router import Router
from cluster.status import ChannelAddress, GroupStatus
from core.errors import (
    ContextTooLong,
    Draining,
    EaglerayError,
    ErrorInfo,
    ModelNotFound,
    NotReady,
    QueueFull,
    ReplicaFailed,
)
from deployments.groups.directory import GroupDirectory, ServedModel
from deployments.token_channel.server import TokenChannelServer
from deployments.token_channel.streams import EventStream, OpenStreams
from engine.request import TokenEvent
from tests.support.fake_clock import FakeClock
from tests.support.fake_target import FakeTarget, engine_load, generation_request, group_status


class FakeTransport:
    def __init__(self, group_id, address, on_load):
        self.group_id, self.address, self.on_load = group_id, address, on_load
        self.is_open = True
        self.load = None
        self.refusal: EaglerayError | None = None
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.streams = OpenStreams(self.cancelled.append)

    async def submit(self, request) -> EventStream:
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        self.submitted.append(request.request_id)
        return self.streams.open(request.request_id)

    async def close(self):
        self.is_open = False
        self.streams.end_all(ErrorInfo.of(ReplicaFailed("closed")))


class World:
    """A directory, its clock, and every transport it ever opened."""

    def __init__(self, expected=None):
        self.clock = FakeClock()
        self.transports: list[FakeTransport] = []
        self.num_attempts = 0
        self.is_reachable = True
        self.router = Router(LeastOutstandingTokens())
        self.directory = GroupDirectory(expected, router=self.router, connect=self.connect, clock=self.clock)

    async def connect(self, address, group_id, listener):
        self.num_attempts += 1
        await asyncio.sleep(0)
        if not self.is_reachable:
            raise ReplicaFailed(f"{group_id} cannot be reached")
        self.transports.append(FakeTransport(group_id, address, listener.on_load))
        return self.transports[-1]

    async def announce(self, *statuses: GroupStatus) -> None:
        for status in statuses:
            self.directory.announce(status)
        await self.settle()

    async def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.clock.advance(0.25)
            self.directory.tend()
            await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    def outstanding(self, group_id: str) -> int:
        return self.router.view(group_id).num_outstanding_tokens


def ready(group_id="g1", port=1, secret=b"s", **fields) -> GroupStatus:
    return group_status(group_id, channel=ChannelAddress("127.0.0.1", port, secret), **fields)


def test_only_a_ready_and_connected_group_gets_work(run):
    async def main():
        world = World()
        await world.announce(group_status("g1", state="starting"))
        assert world.directory.open_groups("tiny") == []
        with pytest.raises(NotReady, match="g1 is starting") as refusal:
            await world.directory.submit("tiny", generation_request("r1"))
        assert refusal.value.retry_after_s
        await world.announce(ready("g1"))
        assert world.directory.open_groups("tiny") == ["g1"]
        await world.announce(ready("g1", state="draining"))
        assert world.directory.open_groups("tiny") == []
        assert world.transports[0].is_open, "a draining group still streams"
        await world.directory.close()

    run(main())


def test_a_new_generation_of_a_group_gets_work_at_once_whatever_the_former_one_broke(run):
    async def main():
        world = World()
        await world.announce(ready("g1"), ready("g2"))
        for _ in range(3):
            with world.router.reserve(["g1"], RoutingRequest(1, 1)) as reservation:
                reservation.failed()
        await world.announce(ready("g1", generation=9))
        picked = {world.router.reserve(["g1", "g2"], RoutingRequest(1, 1)).group_id for _ in range(2)}
        assert picked == {"g1", "g2"}
        await world.directory.close()

    run(main())


def test_an_unknown_model_is_refused_naming_those_served(run):
    async def main():
        world = World(expected=["tiny", "other"])
        await world.announce(ready("g1"))
        with pytest.raises(ModelNotFound, match="other, tiny"):
            await world.directory.submit("large", generation_request("r1"))
        with pytest.raises(NotReady, match="none has announced itself"):
            await world.directory.submit("other", generation_request("r1"))
        await world.directory.close()

    run(main())


def test_an_unexpected_model_is_ignored_and_logged_once(run, caplog, monkeypatch):
    async def main():
        world = World(expected=["tiny"])
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                await world.announce(ready("g1", model="surprise"))
        assert world.directory.statuses() == []
        assert world.num_attempts == 0

    # configure_logging, if another test called it, keeps records from the root, where caplog listens.
    monkeypatch.setattr(logging.getLogger("deployments"), "propagate", True)
    run(main())
    assert [record.message for record in caplog.records] == ["unexpected model ignored"]


def test_two_idle_groups_alternate(run):
    async def main():
        world = World()
        await world.announce(ready("g1", port=1), ready("g2", port=2))
        served = []
        for number in range(6):
            async with await world.directory.submit("tiny", generation_request(f"r{number}")) as stream:
                served.append(stream.group_id)
        assert served == ["g1", "g2"] * 3
        assert world.outstanding("g1") == world.outstanding("g2") == 0
        await world.directory.close()

    run(main())


def test_concurrent_submits_spread_over_the_groups(run):
    async def main():
        world = World()
        await world.announce(ready("g1", port=1), ready("g2", port=2))
        streams = await asyncio.gather(
            *(world.directory.submit("tiny", generation_request(f"r{number}")) for number in range(20))
        )
        served = [stream.group_id for stream in streams]
        assert (served.count("g1"), served.count("g2")) == (10, 10)
        for stream in streams:
            await stream.__aexit__()
        assert world.outstanding("g1") == world.outstanding("g2") == 0
        await world.directory.close()

    run(main())


def test_reports_of_other_gateways_work_steer_the_choice(run):
    async def main():
        world = World()
        await world.announce(ready("g1", port=1), ready("g2", port=2))
        world.transports[0].on_load(engine_load(5000))
        for number in range(3):
            stream = await world.directory.submit("tiny", generation_request(f"r{number}"))
            assert stream.group_id == "g2"
        await world.directory.close()

    run(main())


def test_a_refusal_goes_on_to_the_next_group(run):
    async def main():
        world = World()
        await world.announce(ready("g1", port=1), ready("g2", port=2))
        world.transports[0].refusal = QueueFull("full")
        for number in range(4):
            stream = await world.directory.submit("tiny", generation_request(f"r{number}"))
            assert stream.group_id == "g2"
        assert world.outstanding("g1") == 0
        world.transports[0].refusal = ReplicaFailed("broke")
        await world.directory.submit("tiny", generation_request("r5"))
        assert world.outstanding("g1") == 0
        await world.directory.close()

    run(main())


def test_when_all_refuse_the_caller_learns_the_soonest_retry(run):
    async def main():
        world = World()
        await world.announce(*(ready(f"g{number}", port=number) for number in (1, 2, 3)))
        world.transports[0].refusal = QueueFull("full", retry_after_s=1.0)
        world.transports[1].refusal = Draining("drains", retry_after_s=9.0)
        world.transports[2].refusal = ReplicaFailed("broke")
        with pytest.raises(ReplicaFailed, match="broke") as refusal:
            await world.directory.submit("tiny", generation_request("r1"))
        assert refusal.value.retry_after_s == 1.0
        assert [world.outstanding(group) for group in ("g1", "g2", "g3")] == [0, 0, 0]
        await world.directory.close()

    run(main())


def test_a_request_error_is_not_tried_elsewhere(run):
    async def main():
        world = World()
        await world.announce(ready("g1", port=1), ready("g2", port=2))
        world.transports[0].refusal = ContextTooLong("too long")
        with pytest.raises(ContextTooLong):
            await world.directory.submit("tiny", generation_request("r1"))
        assert world.transports[1].submitted == []
        assert world.outstanding("g1") == 0
        await world.directory.close()

    run(main())


def test_the_stream_reports_progress_and_returns_its_reservation_at_the_end(run):
    async def main():
        world = World()
        await world.announce(ready("g1"))
        async with await world.directory.submit("tiny", generation_request("r1")) as stream:
            assert world.outstanding("g1") == 20
            world.transports[0].streams.deliver([TokenEvent("r1", [1, 2, 3])])
            await anext(stream)
            assert world.outstanding("g1") == 13
            world.transports[0].streams.deliver([TokenEvent("r1", [], finish_reason="stop")])
            assert [event.is_terminal async for event in stream] == [True]
            assert world.outstanding("g1") == 0
        assert world.transports[0].cancelled == []
        await world.directory.close()

    run(main())


def test_a_report_does_not_count_our_accepted_request_twice(run):
    async def main():
        world = World()
        await world.announce(ready("g1"))
        async with await world.directory.submit("tiny", generation_request("r1")):
            world.transports[0].on_load(engine_load(20, num_running=1))
            assert world.outstanding("g1") == 20
        await world.directory.close()

    run(main())


def test_a_report_under_way_does_not_revive_a_forgotten_group(run):
    async def main():
        world = World()
        await world.announce(ready("g1"))
        await world.directory.close()
        world.transports[0].on_load(engine_load(5000))
        assert world.outstanding("g1") == 0

    run(main())


def test_leaving_early_cancels_and_returns_the_reservation(run):
    async def main():
        world = World()
        await world.announce(ready("g1"))
        async with await world.directory.submit("tiny", generation_request("r1")):
            pass
        assert world.transports[0].cancelled == ["r1"]
        assert world.outstanding("g1") == 0
        await world.directory.close()

    run(main())


def test_a_caller_cancelled_while_submitting_returns_the_reservation(run):
    async def main():
        world = World()
        await world.announce(ready("g1"))
        task = asyncio.create_task(world.directory.submit("tiny", generation_request("r1")))
        await asyncio.sleep(0)
        assert world.outstanding("g1") == 20
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert world.outstanding("g1") == 0
        await world.directory.close()

    run(main())


def test_a_broken_connection_is_reopened_and_the_pauses_grow(run):
    async def main():
        world = World()
        await world.announce(ready("g1"))
        world.is_reachable = False
        world.transports[0].is_open = False
        assert world.directory.open_groups("tiny") == []
        attempts = []
        for _ in range(10):
            await world.announce(ready("g1"))
            await world.pass_time(1.0)
            attempts.append(world.num_attempts - 1)
        assert attempts[0] >= 2, "the first tries come soon"
        assert 4 <= attempts[-1] <= 7, "later ones do not hammer"
        world.is_reachable = True
        await world.announce(ready("g1"))
        await world.pass_time(5.0)
        assert world.directory.open_groups("tiny") == ["g1"]
        await world.directory.close()

    run(main())


@pytest.mark.parametrize("change", [{"port": 2}, {"secret": b"other"}])
def test_a_changed_address_replaces_the_connection(run, change):
    async def main():
        world = World()
        await world.announce(ready("g1"))
        await world.announce(ready("g1", **change))
        old, new = world.transports
        assert (old.is_open, new.is_open) == (False, True)
        assert new.address == ready("g1", **change).channel
        await world.announce(ready("g1", **change))
        assert world.num_attempts == 2
        await world.directory.close()

    run(main())


def test_a_silent_and_disconnected_group_is_forgotten(run):
    async def main():
        world = World()
        await world.announce(ready("g1"))
        world.is_reachable = False
        world.transports[0].is_open = False
        await world.pass_time(14.0)
        assert len(world.directory.statuses()) == 1
        await world.pass_time(1.5)
        assert world.directory.statuses() == []
        num_attempts = world.num_attempts
        await world.pass_time(20.0)
        assert world.num_attempts == num_attempts
        with pytest.raises(ModelNotFound):
            await world.directory.submit("tiny", generation_request("r1"))

    run(main())


def test_a_group_whose_announcements_are_held_up_keeps_serving(run):
    async def main():
        world = World()
        await world.announce(ready("g1"))
        await world.pass_time(60.0)
        assert world.directory.open_groups("tiny") == ["g1"]
        await world.directory.close()

    run(main())


def test_listeners_hear_of_changes_and_not_of_repetitions(run):
    async def main():
        world = World()
        heard: list[str] = []
        world.directory.subscribe(lambda status: heard.append(status.state))
        starting = group_status("g1", state="starting")
        await world.announce(starting, starting, ready("g1"), ready("g1"))
        assert heard == ["starting", "ready"]
        await world.directory.close()

    run(main())


def test_an_announcement_overtaken_by_a_newer_generation_is_ignored(run):
    async def main():
        world = World()
        await world.announce(ready("g1", generation=2), group_status("g1", state="restarting", generation=1))
        assert [status.state for status in world.directory.statuses()] == ["ready"]
        await world.directory.close()

    run(main())


def test_models_are_described_by_their_groups(run):
    async def main():
        world = World()
        await world.announce(
            ready("g1", max_model_len=128),
            ready("g2", port=2, max_model_len=64),
            ready("g3", port=3, model="blank", max_model_len=0),
        )
        assert world.directory.models() == [ServedModel("tiny", 64, "/models/tiny", None)]
        assert [status.group_id for status in world.directory.statuses("tiny")] == ["g1", "g2"]
        await world.directory.close()

    run(main())


def test_closing_ends_streams_and_attempts(run):
    async def main():
        world = World()
        world.directory.start()
        await world.announce(ready("g1"))
        world.directory.announce(ready("g2", port=2))  # its attempt is under way
        stream = await world.directory.submit("tiny", generation_request("r1"))
        await world.directory.close()
        await world.directory.close()
        events = [event async for event in stream]
        assert [event.error.code for event in events if event.error] == ["replica_failed"]
        await world.settle()

    run(main())


def test_a_group_that_dies_mid_stream_over_tcp_ends_the_stream_and_the_next_request_goes_elsewhere(run):
    async def main():
        targets = [FakeTarget(f"g{number}") for number in (1, 2)]
        servers = [TokenChannelServer(target, b"secret") for target in targets]
        directory = GroupDirectory()
        directory.start()
        for number, server in enumerate(servers, start=1):
            directory.announce(group_status(f"g{number}", channel=await server.start()))
        async with asyncio.timeout(5):
            while len(directory.open_groups("tiny")) < 2:
                await asyncio.sleep(0.001)
        stream = await directory.submit("tiny", generation_request("r1"))
        dying = int(stream.group_id[1]) - 1
        targets[dying].step([TokenEvent("r1", [1])])
        await anext(stream)
        await servers[dying].close()
        assert [event.error.code async for event in stream if event.error] == ["replica_failed"]
        for number in range(3):
            other = await directory.submit("tiny", generation_request(f"r{number + 2}"))
            assert other.group_id == f"g{2 - dying}"
        await directory.close()
        await servers[1 - dying].close()

    run(main())
