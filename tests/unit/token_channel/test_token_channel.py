"""Both ends over loopback sockets: red if the channel reorders, loses, delays, leaks, or lets one end hurt another."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from cluster.status import ChannelAddress
from core.errors import EaglerayError, InvalidRequest, QueueFull, ReplicaFailed
from core.frames import MAX_FRAME_BYTES, authenticate_stream, pack, read_frame
from deployments.groups.transport import GroupListener, TokenStream
from deployments.token_channel.client import TcpTransport
from deployments.token_channel.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Cancel,
    Events,
    FromGroup,
    Load,
    Refused,
    Submit,
    Welcome,
)
from deployments.token_channel.server import TokenChannelServer
from engine.request import EngineLoad, StepEvents, TokenEvent
from tests.support.fake_target import FakeTarget, engine_load, generation_request

SECRET = b"a shared secret"


@asynccontextmanager
async def serving(target: FakeTarget, **options: int) -> AsyncIterator[TokenChannelServer]:
    # Reports by the clock would mix with those the tests ask for.
    server = TokenChannelServer(target, SECRET, load_period_s=3600, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.close()
        assert server.num_connections == server.num_open_requests == 0


@asynccontextmanager
async def channel(target: FakeTarget, **options: int) -> AsyncIterator[tuple[TokenChannelServer, TcpTransport]]:
    async with serving(target, **options) as server:
        transport = await TcpTransport.connect(server.address, "group-1")
        try:
            yield server, transport
        finally:
            await transport.close()
            assert transport.num_open_streams == 0


class RawGateway:
    """A gateway that sends what it likes."""

    @classmethod
    async def connect(cls, address: ChannelAddress) -> "RawGateway":
        gateway = cls()
        gateway.reader, gateway.writer = await asyncio.open_connection(address.host, address.port)
        await authenticate_stream(gateway.reader, gateway.writer, address.secret)
        assert isinstance(await gateway.receive(), Welcome)
        return gateway

    async def receive(self) -> FromGroup:
        return msgspec.msgpack.decode(await read_frame(self.reader), type=FromGroup)

    async def receive_but_loads(self) -> FromGroup:
        while isinstance(message := await self.receive(), Load):
            pass
        return message

    def send(self, message: msgspec.Struct) -> None:
        self.writer.write(pack(msgspec.msgpack.encode(message)))

    async def is_cut(self) -> bool:
        with suppress(ConnectionError):
            await self.reader.read()
        self.writer.close()
        return True


async def until(condition) -> None:
    """Return as soon as the condition holds; well before any timeout of the channel could make it hold."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def read_all(stream: TokenStream) -> list[TokenEvent]:
    async with stream:
        return [event async for event in stream]


def test_events_arrive_in_order_and_end_once(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (server, transport):
            stream = await transport.submit(generation_request("r1"))
            for token in range(5):
                target.step([TokenEvent("r1", [token])])
            target.step([TokenEvent("r1", [], finish_reason="length")])
            events = await read_all(stream)
            assert [event.token_ids for event in events] == [[0], [1], [2], [3], [4], []]
            assert [event.is_terminal for event in events] == [False] * 5 + [True]
            assert target.requests["r1"] == generation_request("r1")
            assert (server.num_open_requests, transport.num_open_streams, target.cancelled) == (0, 0, [])

    run(main())


def test_one_step_is_one_frame_for_all_streams_of_a_gateway(run):
    async def main():
        target = FakeTarget()
        async with serving(target) as server:
            gateway = await RawGateway.connect(server.address)
            for number in range(8):
                gateway.send(Submit(generation_request(f"r{number}")))
                assert await gateway.receive_but_loads() == Accepted(f"r{number}")
            events = [TokenEvent(f"r{number}", [number]) for number in range(8)]
            target.step(events)
            assert await gateway.receive_but_loads() == Events(events)
            gateway.writer.close()

    run(main())


def test_requests_that_go_on_decoding_are_named_once(run):
    async def main():
        target = FakeTarget()
        async with serving(target) as server:
            gateway = await RawGateway.connect(server.address)
            for name in ("a", "b", "c"):
                gateway.send(Submit(generation_request(name)))
                await gateway.receive_but_loads()
            sink, end = target.sinks["a"], TokenEvent("c", [], finish_reason="stop")
            frames = []
            for step in (
                StepEvents(["a", "b"], [1, 2]),
                StepEvents(["a", "b"], [3, 4]),
                StepEvents(events=[end]),
                StepEvents(["a", "b"], [5, 6]),
                StepEvents(["b"], [7]),
            ):
                sink(step)
                frames.append(await gateway.receive_but_loads())
            assert frames == [
                Events([], [1, 2], ["a", "b"]),
                Events([], [3, 4]),
                Events([end]),
                Events([], [5, 6]),
                Events([], [7], ["b"]),
            ]
            gateway.writer.close()

    run(main())


def test_plain_tokens_reach_their_streams_before_the_ends_of_the_same_step(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (_, transport):
            streams = {name: await transport.submit(generation_request(name)) for name in ("a", "b")}
            sink = target.sinks["a"]
            sink(StepEvents(["a", "b"], [1, 2]))
            sink(StepEvents(["a", "b"], [3, 4]))
            sink(StepEvents(["a", "b"], [5, 6], [TokenEvent(name, [], finish_reason="stop") for name in ("a", "b")]))
            assert [event.token_ids for event in await read_all(streams["a"])] == [[1], [3], [5], []]
            assert [event.token_ids for event in await read_all(streams["b"])] == [[2], [4], [6], []]

    run(main())


def test_a_frame_with_tokens_for_nobody_costs_the_group_its_connection(run):
    async def main():
        async with silent_group() as (address, connections):
            transport = await TcpTransport.connect(address, "group-1")
            connections[0].write(pack(msgspec.msgpack.encode(Events([], [1, 2], ["only one"]))))
            await until(lambda: not transport.is_open)
            await transport.close()

    run(main())


def test_accepted_precedes_events_even_when_the_engine_is_faster(run):
    async def main():
        target = FakeTarget()
        target.events_on_submit = [TokenEvent("r1", [7], finish_reason="stop")]
        async with serving(target) as server:
            gateway = await RawGateway.connect(server.address)
            gateway.send(Submit(generation_request("r1")))
            assert await gateway.receive_but_loads() == Accepted("r1")
            assert await gateway.receive_but_loads() == Events(target.events_on_submit)
            gateway.writer.close()

    run(main())


def test_events_of_another_thread_arrive_without_waiting_for_a_timer(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (_, transport):
            stream = await transport.submit(generation_request("r1"))
            sent_s: list[float] = []
            waits_s: list[float] = []

            def engine() -> None:
                sent_s.append(time.perf_counter())
                target.step([TokenEvent("r1", [1])])

            async with stream:
                for _ in range(10):
                    reader = asyncio.ensure_future(anext(stream))
                    await asyncio.sleep(0)
                    thread = threading.Thread(target=engine)
                    thread.start()
                    await reader
                    waits_s.append(time.perf_counter() - sent_s[-1])
                    thread.join()
            assert sorted(waits_s)[5] < 0.03

    run(main())


def test_a_refusal_reaches_the_caller_as_its_own_class(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (_, transport):
            target.refusal = QueueFull("1024 requests wait", retry_after_s=1.5)
            with pytest.raises(QueueFull, match="1024 requests wait") as refusal:
                await transport.submit(generation_request("r1"))
            assert refusal.value.retry_after_s == 1.5
            target.refusal = None
            await transport.submit(generation_request("r1"))

    run(main())


def test_a_fault_in_the_target_refuses_that_request_only(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (_, transport):
            target.refusal = ZeroDivisionError("a bug")
            with pytest.raises(EaglerayError, match="failed to take the request"):
                await transport.submit(generation_request("r1"))
            target.refusal = None
            await transport.submit(generation_request("r2"))

    run(main())


def test_a_request_id_may_be_open_once_in_the_whole_group(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (server, transport):
            await transport.submit(generation_request("r1"))
            with pytest.raises(InvalidRequest, match="already open"):
                await transport.submit(generation_request("r1"))
            gateway = await RawGateway.connect(server.address)
            gateway.send(Submit(generation_request("r1")))
            assert isinstance(await gateway.receive_but_loads(), Refused)
            gateway.send(Submit(generation_request("r2")))
            gateway.send(Submit(generation_request("r2")))
            assert await gateway.receive_but_loads() == Accepted("r2")
            assert isinstance(await gateway.receive_but_loads(), Refused)
            gateway.writer.close()
            await until(lambda: target.cancelled == ["r2"])

    run(main())


def test_values_out_of_range_refuse_the_request_and_keep_the_gateway(run):
    async def main():
        target = FakeTarget()
        async with serving(target) as server:
            gateway = await RawGateway.connect(server.address)
            frame = msgspec.to_builtins(Submit(generation_request("r1")))
            frame["request"]["sampling"]["temperature"] = 1e9
            gateway.writer.write(pack(msgspec.msgpack.encode(frame)))
            refusal = await gateway.receive_but_loads()
            assert isinstance(refusal, Refused)
            assert (refusal.request_id, refusal.error.param) == ("r1", "temperature")
            gateway.send(Submit(generation_request("r2")))
            assert await gateway.receive_but_loads() == Accepted("r2")
            gateway.writer.close()

    run(main())


def test_leaving_a_stream_early_cancels_its_request(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (server, transport):
            async with await transport.submit(generation_request("r1")) as stream:
                target.step([TokenEvent("r1", [1])])
                assert (await anext(aiter(stream))).token_ids == [1]
            await until(lambda: target.cancelled == ["r1"])
            await until(lambda: server.num_open_requests == 0)
            assert transport.num_open_streams == 0

    run(main())


def test_a_caller_cancelled_while_submitting_leaves_nothing_behind(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (server, transport):
            task = asyncio.create_task(transport.submit(generation_request("r1")))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: target.cancelled == ["r1"] and server.num_open_requests == 0)

    run(main())


def test_a_gateway_cannot_cancel_the_requests_of_another(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (server, transport):
            await transport.submit(generation_request("theirs"))
            gateway = await RawGateway.connect(server.address)
            gateway.send(Cancel("theirs"))
            gateway.send(Cancel("nobody's"))
            gateway.send(Submit(generation_request("mine")))
            assert await gateway.receive_but_loads() == Accepted("mine")
            assert target.cancelled == []
            gateway.writer.close()

    run(main())


def test_a_broken_gateway_cancels_its_requests_and_no_others(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (server, transport):
            kept = await transport.submit(generation_request("kept"))
            gateway = await RawGateway.connect(server.address)
            for number in range(3):
                gateway.send(Submit(generation_request(f"r{number}")))
                await gateway.receive_but_loads()
            gateway.writer.transport.abort()
            await until(lambda: sorted(target.cancelled) == ["r0", "r1", "r2"])
            target.step([TokenEvent("kept", [1], finish_reason="stop")])
            assert len(await read_all(kept)) == 1

    run(main())


def test_a_group_that_closes_ends_every_stream_within_milliseconds(run):
    async def main():
        target = FakeTarget()
        async with channel(target) as (server, transport):
            streams = [await transport.submit(generation_request(f"r{number}")) for number in range(8)]
            readers = [asyncio.create_task(read_all(stream)) for stream in streams]
            await asyncio.sleep(0)
            began_s = time.perf_counter()
            await server.close()
            for events in await asyncio.gather(*readers):
                assert [event.error.code for event in events if event.error] == ["replica_failed"]
                assert len(events) == 1
            assert time.perf_counter() - began_s < 0.5
            assert sorted(target.cancelled) == [f"r{number}" for number in range(8)]
            assert not transport.is_open
            with pytest.raises(ReplicaFailed):
                await transport.submit(generation_request("late"))

    run(main())


def test_a_submit_under_way_fails_at_once_when_the_connection_breaks(run):
    async def main():
        async with silent_group() as (address, connections):
            transport = await TcpTransport.connect(address, "group-1")
            task = asyncio.create_task(transport.submit(generation_request("r1")))
            await asyncio.sleep(0.005)
            connections[0].transport.abort()
            with pytest.raises(ReplicaFailed, match="gone"):
                await task

    run(main())


@asynccontextmanager
async def silent_group() -> AsyncIterator[tuple[ChannelAddress, list[asyncio.StreamWriter]]]:
    """A group that welcomes and then says nothing, as a frozen process would."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await authenticate_stream(reader, writer, SECRET)
        writer.write(pack(msgspec.msgpack.encode(Welcome("group-1", "tiny", 1, PROTOCOL_VERSION))))
        writers.append(writer)
        with suppress(ConnectionError):
            await reader.read()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield ChannelAddress("127.0.0.1", server.sockets[0].getsockname()[1], SECRET), writers
    finally:
        for writer in writers:
            writer.transport.abort()
        server.close()
        await until(lambda: len(asyncio.all_tasks()) == 1)


def test_a_submit_that_is_never_answered_fails_by_its_timeout(run):
    async def main():
        async with silent_group() as (address, _):
            transport = await TcpTransport.connect(address, "group-1", submit_timeout_s=0.01)
            with pytest.raises(ReplicaFailed, match=r"within 0\.01 s"):
                await transport.submit(generation_request("r1"))
            assert transport.num_open_streams == 0
            await transport.close()

    run(main())


def test_a_silent_group_is_given_up(run):
    async def main():
        async with silent_group() as (address, _):
            transport = await TcpTransport.connect(address, "group-1", silence_timeout_s=0.02)
            with pytest.raises(ReplicaFailed, match="nothing heard"):
                await transport.submit(generation_request("r1"))
            assert not transport.is_open

    run(main())


def test_a_wrong_secret_is_refused_by_both_ends(run):
    async def main():
        target = FakeTarget()
        async with serving(target) as server:
            address = server.address
            with pytest.raises(ReplicaFailed, match="cannot be used"):
                await TcpTransport.connect(ChannelAddress(address.host, address.port, b"wrong"), "group-1")
            await until(lambda: server.num_connections == 0)

    run(main())


def test_another_group_on_a_reused_port_is_not_mistaken_for_ours(run):
    async def main():
        async with serving(FakeTarget("group-2")) as server:
            with pytest.raises(ReplicaFailed, match="group-2 answers there"):
                await TcpTransport.connect(server.address, "group-1")

    run(main())


def test_nobody_at_the_address_is_replica_failed(run):
    async def main():
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(ReplicaFailed, match="cannot be reached"):
                await TcpTransport.connect(ChannelAddress("127.0.0.1", unused.getsockname()[1], SECRET), "group-1")

    run(main())


@pytest.mark.parametrize(
    "garbage",
    [
        pack(b"\xc1 never msgpack"),
        pack(msgspec.msgpack.encode({"type": "Surprise"})),
        pack(msgspec.msgpack.encode({"type": "Cancel", "request_id": 5})),
        pack(msgspec.msgpack.encode({"type": "Cancel"}).replace(b"Cancel", b"\xff\xfe\xfd\xfc\xfb\xfa")),
        pack(b""),
        (MAX_FRAME_BYTES + 1).to_bytes(4, "little"),
        b"\xff" * 100_000,
    ],
)
def test_a_malformed_frame_closes_that_connection_only(run, garbage):
    async def main():
        target = FakeTarget()
        async with channel(target) as (server, transport):
            gateway = await RawGateway.connect(server.address)
            gateway.send(Submit(generation_request("bad")))
            await gateway.receive_but_loads()
            gateway.writer.write(garbage)
            assert await gateway.is_cut()
            await until(lambda: target.cancelled == ["bad"])
            await transport.submit(generation_request("good"))

    run(main())


@pytest.mark.parametrize("size", [0, 1, 31, 32, 63, 64, 500_000])
def test_garbage_instead_of_a_handshake_is_cut_off(run, size):
    async def main():
        target = FakeTarget()
        async with channel(target) as (server, transport):
            reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
            writer.write(b"G" * size)
            if writer.can_write_eof():
                writer.write_eof()
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
            await until(lambda: server.num_connections == 1)
            await transport.submit(generation_request("good"))

    run(main())


def test_half_a_frame_and_a_close_cancels_what_was_open(run):
    async def main():
        target = FakeTarget()
        async with serving(target) as server:
            gateway = await RawGateway.connect(server.address)
            gateway.send(Submit(generation_request("r1")))
            await gateway.receive_but_loads()
            gateway.writer.write(pack(b"x" * 1000)[:300])
            gateway.writer.close()
            await until(lambda: target.cancelled == ["r1"] and server.num_connections == 0)

    run(main())


def test_a_gateway_that_does_not_read_is_dropped_and_its_requests_cancelled(run):
    async def main():
        target = FakeTarget()
        async with serving(target, max_buffered_bytes=256 * 1024) as server:
            gateway = await RawGateway.connect(server.address)
            gateway.send(Submit(generation_request("r1")))
            await gateway.receive_but_loads()
            gateway.writer.transport.pause_reading()
            num_steps = 0
            while not target.cancelled:
                num_steps += 1
                target.step([TokenEvent("r1", list(range(5000)))])
                await asyncio.sleep(0)
                assert num_steps < 3000, "the server buffers without limit"
            gateway.writer.transport.abort()

    run(main())


def test_events_that_pile_up_while_the_loop_stalls_are_bounded(run):
    async def main():
        target = FakeTarget()
        async with serving(target, max_buffered_bytes=64 * 1024) as server:
            gateway = await RawGateway.connect(server.address)
            gateway.send(Submit(generation_request("r1")))
            await gateway.receive_but_loads()
            for _ in range(100):  # the loop does not turn in here
                target.step([TokenEvent("r1", list(range(5000)))])
            await until(lambda: target.cancelled == ["r1"])
            assert await gateway.is_cut()

    run(main())


def test_connections_over_the_limit_are_refused(run):
    async def main():
        async with serving(FakeTarget(), max_connections=2) as server:
            transports = [await TcpTransport.connect(server.address, "group-1") for _ in range(2)]
            with pytest.raises(ReplicaFailed):
                await TcpTransport.connect(server.address, "group-1")
            for transport in transports:
                await transport.close()

    run(main())


def test_a_hundred_connects_and_disconnects_leave_nothing(run):
    async def main():
        async with serving(FakeTarget()) as server:
            for number in range(100):
                transport = await TcpTransport.connect(server.address, "group-1")
                await transport.submit(generation_request(f"r{number}"))
                await transport.close()
            await until(lambda: server.num_connections == server.num_open_requests == 0)

    run(main())


def test_load_is_reported_at_once_while_busy_and_seldom_while_idle(run):
    async def main():
        target = FakeTarget()
        seen: list[EngineLoad] = []
        async with serving(target) as server:
            transport = await TcpTransport.connect(server.address, "group-1", GroupListener(on_load=seen.append))
            await until(lambda: len(seen) == 1)  # a newcomer is told without waiting
            target.current_load = engine_load(50, num_running=1)
            server.report_load()
            server.report_load()
            await until(lambda: len(seen) == 3)
            assert transport.load == target.current_load
            target.current_load = engine_load()
            for _ in range(10):
                server.report_load()
            await until(lambda: len(seen) == 4)  # the change, then silence until the tenth period
            server.report_load()
            await until(lambda: len(seen) == 5)
            target.current_load = None  # restarting: a sign of life all the same
            server.report_load()
            await until(lambda: len(seen) == 6)
            await transport.close()

    run(main())


def test_reports_go_out_by_themselves(run):
    async def main():
        seen: list[EngineLoad] = []
        target = FakeTarget()
        target.current_load = engine_load(50, num_running=1)
        server = TokenChannelServer(target, SECRET, load_period_s=0.005)
        transport = await TcpTransport.connect(await server.start(), "group-1", GroupListener(on_load=seen.append))
        await until(lambda: len(seen) == 3)
        await transport.close()
        await server.close()

    run(main())


def test_a_report_is_heard_after_the_submits_it_counts_have_returned(run):
    async def main():
        target = FakeTarget()
        heard: list[str] = []
        async with serving(target) as server:
            transport = await TcpTransport.connect(
                server.address, "group-1", GroupListener(on_load=lambda load: heard.append(f"load {load.num_waiting}"))
            )
            await until(lambda: heard == ["load 0"])

            async def submit() -> None:
                await transport.submit(generation_request("r1"))
                heard.append("accepted")

            def report() -> None:
                target.current_load = engine_load(20, num_waiting=1)
                server.report_load()

            # The report follows the acceptance before the gateway's next read, which so holds both.
            target.on_submit = lambda: asyncio.get_running_loop().call_soon(report)
            await submit()
            await until(lambda: len(heard) == 3)
            assert heard == ["load 0", "accepted", "load 1"]
            await transport.close()

    run(main())
