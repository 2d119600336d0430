"""OpenStreams and InProcessTransport: red if a stream leaks, ends twice, hangs or grows without limit."""

import asyncio
import threading

import pytest

from core.errors import ErrorInfo, InvalidRequest, QueueFull, ReplicaFailed
from deployments.groups.in_process import InProcessTransport
from deployments.token_channel.streams import OpenStreams
from engine.request import StepEvents, TokenEvent
from tests.support.fake_target import FakeTarget, generation_request


def test_a_stream_left_unread_is_cut_off_with_an_error_and_cancelled(run):
    async def main():
        cancelled: list[str] = []
        streams = OpenStreams(cancelled.append, max_unread_events=10)
        stream = streams.open("r1")
        for token in range(1000):
            streams.deliver(StepEvents(events=[TokenEvent("r1", [token])]))
        events = [event async for event in stream]
        assert len(events) == 11
        assert events[-1].error is not None
        assert (len(streams), cancelled) == (0, ["r1"])

    run(main())


def test_events_of_a_stream_that_was_left_are_dropped(run):
    async def main():
        cancelled: list[str] = []
        streams = OpenStreams(cancelled.append)
        async with streams.open("r1") as stream:
            pass
        streams.deliver(StepEvents(events=[TokenEvent("r1", [1]), TokenEvent("r1", [], finish_reason="cancelled")]))
        assert [event async for event in stream] == []
        assert cancelled == ["r1"]

    run(main())


def test_a_waiting_reader_wakes_when_its_stream_is_left(run):
    async def main():
        streams = OpenStreams(lambda request_id: None)
        stream = streams.open("r1")

        async def read() -> list[TokenEvent]:
            return [event async for event in stream]

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        await stream.__aexit__()
        assert await reader == []

    run(main())


def test_a_finished_stream_is_not_cancelled_when_left(run):
    async def main():
        cancelled: list[str] = []
        streams = OpenStreams(cancelled.append)
        async with streams.open("r1"):
            streams.deliver(StepEvents(events=[TokenEvent("r1", [1], finish_reason="stop")]))
        assert cancelled == []

    run(main())


def test_ending_all_streams_gives_each_one_terminal_event(run):
    async def main():
        streams = OpenStreams(lambda request_id: None)
        stream = streams.open("r1")
        streams.deliver(StepEvents(events=[TokenEvent("r1", [1])]))
        streams.end_all(ErrorInfo("replica_failed", "gone"))
        streams.end_all(ErrorInfo("replica_failed", "gone"))
        assert [event.is_terminal async for event in stream] == [False, True]

    run(main())


def test_in_process_streams_take_events_from_the_engine_thread(run):
    async def main():
        target = FakeTarget()
        transport = InProcessTransport(target)

        def engine() -> None:
            target.step([TokenEvent("r1", [1])])
            target.step([TokenEvent("r1", [2], finish_reason="stop")])

        async with await transport.submit(generation_request("r1")) as stream:
            thread = threading.Thread(target=engine)
            thread.start()
            assert [event.token_ids async for event in stream] == [[1], [2]]
            thread.join()
        assert target.cancelled == []

    run(main())


def test_in_process_refusals_leave_no_stream(run):
    async def main():
        target = FakeTarget()
        transport = InProcessTransport(target)
        target.refusal = QueueFull("full")
        with pytest.raises(QueueFull):
            await transport.submit(generation_request("r1"))
        target.refusal = None
        await transport.submit(generation_request("r1"))
        with pytest.raises(InvalidRequest, match="already open"):
            await transport.submit(generation_request("r1"))
        await transport.close()

    run(main())


def test_closing_in_process_cancels_and_ends_streams(run):
    async def main():
        target = FakeTarget()
        transport = InProcessTransport(target)
        stream = await transport.submit(generation_request("r1"))
        await transport.close()
        await transport.close()
        events = [event async for event in stream]
        assert [event.error.code for event in events if event.error] == ["replica_failed"]
        assert target.cancelled == ["r1"]
        with pytest.raises(ReplicaFailed):
            await transport.submit(generation_request("r2"))

    run(main())
