"""CPU and delay per token of the token channel against one message per token, both ends, in one run.

    python -m benchmarks.token_channel                       # 32 streams, a step every 20 ms
    python -m benchmarks.token_channel --streams 1 --json

A process plays the replica group: its thread makes a token for every stream at each step. This process plays the
gateway and reads the streams. Processor time is that of both processes while tokens flow, the paced thread included;
the delay of a token runs from its making on the engine thread to its reader. The baseline is the obvious way: each
token a message, StreamReader, one asyncio.Queue per request. Rounds alternate between the two, so that a busy machine
disturbs both alike. With few streams or long steps the figure is mostly that of waking two idle processes per step;
`--step-ms 2` shows the cost of the tokens.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec
import uvloop

from benchmarks.report import shown, summary, write_report
from cluster.status import ChannelAddress, GroupStatus
from cluster.submit_target import SubmitTarget
from core.frames import ConnectionLost, authenticate_stream, pack, read_frame
from deployments.token_channel.client import TcpTransport
from deployments.token_channel.messages import Accepted, Events, FromGroup, Submit
from deployments.token_channel.server import TokenChannelServer
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement, StepEvents, TokenEvent
from parallel.sampling.params import SamplingParams

Way = Literal["channel", "message per token"]
Reader = Callable[[GenerationRequest], Awaitable[list[float]]]
"""Runs one request to its end; returns each token's delay in seconds."""


class Plan(NamedTuple):
    """What one round does."""

    num_streams: int
    num_tokens: int
    step_s: float


class Round(NamedTuple):
    """What one round cost."""

    gateway_us: float
    """Processor microseconds per token."""
    group_us: float
    delays_ms: list[float]


class PacedTarget:
    """A SubmitTarget whose engine makes one token per request and step; a token's id is the microsecond it was made."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._lock = threading.Lock()
        self._remaining: dict[str, int] = {}
        self._sinks: dict[str, EventSink] = {}
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        """Take the request."""
        with self._lock:
            self._sinks[request.request_id] = sink
            self._remaining[request.request_id] = request.sampling.max_tokens
        return Placement.of(request)

    def cancel(self, request_id: str) -> None:
        """Do nothing; rounds run to their end."""

    def load(self) -> EngineLoad:
        """Return the number of requests."""
        with self._lock:
            return EngineLoad(len(self._remaining), 0, sum(self._remaining.values()), 0, 0, 0, 0, 0, 0, 0, 0)

    def status(self) -> GroupStatus:
        """Return a ready group."""
        return GroupStatus(
            group_id="bench", model="bench", application="bench", state="ready", generation=1, world_size=1
        )

    def _run(self) -> None:
        due_s = time.monotonic()
        while True:
            due_s += self._step_s
            time.sleep(max(0.0, due_s - time.monotonic()))
            with self._lock:
                batches = self._step()
            for sink, events in batches:
                sink(events)

    def _step(self) -> list[tuple[EventSink, StepEvents]]:
        batches: dict[EventSink, StepEvents] = {}
        now_us = time.monotonic_ns() // 1000
        for request_id, remaining in list(self._remaining.items()):
            batch = batches.setdefault(self._sinks[request_id], StepEvents([], [], []))
            self._remaining[request_id] = remaining - 1
            if remaining > 1:
                batch.request_ids.append(request_id)
                batch.token_ids.append(now_us)
            else:
                batch.events.append(TokenEvent(request_id, [now_us], finish_reason="length"))
                del self._remaining[request_id], self._sinks[request_id]
        return list(batches.items())


class MessagePerTokenServer:
    """The baseline's group: every token a message of its own, handed to the loop by a call of its own."""

    def __init__(self, target: SubmitTarget, secret: bytes) -> None:
        self._target = target
        self._secret = secret

    async def start(self) -> ChannelAddress:
        """Listen; return where."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return ChannelAddress("127.0.0.1", server.sockets[0].getsockname()[1], self._secret)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await authenticate_stream(reader, writer, self._secret)
        loop = asyncio.get_running_loop()

        def sink(events: StepEvents) -> None:
            for event in events:
                loop.call_soon_threadsafe(writer.write, pack(msgspec.msgpack.encode(Events([event]))))

        try:
            while True:
                submit = msgspec.msgpack.decode(await read_frame(reader), type=Submit)
                self._target.submit(submit.request, sink)
                writer.write(pack(msgspec.msgpack.encode(Accepted(submit.request.request_id))))
        except ConnectionLost:
            writer.close()


def serve_group(pipe: multiprocessing.connection.Connection, way: Way, step_s: float) -> None:
    """Be the group's process: send the address, then at each message from the gateway the processor time so far."""

    async def main() -> None:
        target = PacedTarget(step_s)
        secret = secrets.token_bytes(32)
        server = TokenChannelServer(target, secret) if way == "channel" else MessagePerTokenServer(target, secret)
        address = await server.start()
        pipe.send((address.host, address.port, address.secret))
        while await asyncio.to_thread(pipe.recv):
            pipe.send(time.process_time())
        # The baseline has no close; its tasks would complain of being cancelled.
        os._exit(0)

    uvloop.run(main())


async def open_reader(address: ChannelAddress, way: Way) -> Reader:
    """Connect to the group; return what runs one request."""
    if way == "channel":
        transport = await TcpTransport.connect(address, "bench")

        async def read_stream(request: GenerationRequest) -> list[float]:
            async with await transport.submit(request) as stream:
                return [_delay_s(event) async for event in stream]

        return read_stream
    reader, writer = await asyncio.open_connection(address.host, address.port)
    await authenticate_stream(reader, writer, address.secret)
    queues: dict[str, asyncio.Queue[TokenEvent]] = {}
    demultiplexer = asyncio.create_task(_demultiplex(reader, queues))

    async def read_queue(request: GenerationRequest) -> list[float]:
        queue = queues[request.request_id] = asyncio.Queue()
        writer.write(pack(msgspec.msgpack.encode(Submit(request))))
        delays_s: list[float] = []
        while not demultiplexer.done():
            event = await queue.get()
            delays_s.append(_delay_s(event))
            if event.is_terminal:
                break
        return delays_s

    return read_queue


async def _demultiplex(reader: asyncio.StreamReader, queues: dict[str, asyncio.Queue[TokenEvent]]) -> None:
    decoder = msgspec.msgpack.Decoder(FromGroup)
    with contextlib.suppress(ConnectionLost):  # the round is over
        while True:
            message = decoder.decode(await read_frame(reader))
            if isinstance(message, Events):
                for event in message.events:
                    queues[event.request_id].put_nowait(event)


def _delay_s(event: TokenEvent) -> float:
    return time.monotonic() - event.token_ids[0] / 1e6


async def play_gateway(pipe: multiprocessing.connection.Connection, way: Way, plan: Plan) -> Round:
    """Run one round's streams to their end against the group behind `pipe`."""
    read = await open_reader(ChannelAddress(*await asyncio.to_thread(pipe.recv)), way)
    requests = [
        GenerationRequest(
            request_id=f"chatcmpl-{secrets.token_hex(12)}",
            token_ids=[1] * 128,
            num_prompt_tokens=128,
            sampling=SamplingParams(max_tokens=plan.num_tokens, seed=1),
        )
        for _ in range(plan.num_streams)
    ]
    pipe.send(True)
    group_began_s = await asyncio.to_thread(pipe.recv)
    gateway_began_s = time.process_time()
    delays_s = await asyncio.gather(*(read(request) for request in requests))
    gateway_s = time.process_time() - gateway_began_s
    pipe.send(True)
    group_s = await asyncio.to_thread(pipe.recv) - group_began_s
    pipe.send(False)
    num_tokens = sum(len(delays) for delays in delays_s)
    assert num_tokens == plan.num_streams * plan.num_tokens, "a token was lost"
    delays_ms = [delay * 1e3 for delays in delays_s for delay in delays]
    return Round(gateway_s / num_tokens * 1e6, group_s / num_tokens * 1e6, delays_ms)


def run_round(way: Way, plan: Plan) -> Round:
    """Start a group, read its streams, end it; blocks for about num_tokens steps."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    group = multiprocessing.get_context("spawn").Process(target=serve_group, args=(theirs, way, plan.step_s))
    group.start()
    try:
        return uvloop.run(play_gateway(ours, way, plan))
    finally:
        group.join(timeout=5)
        group.kill()


def figures(rounds: list[Round]) -> dict[str, object]:
    """Return medians over rounds, and delays over all tokens."""
    return {
        "gateway_us_per_token": round(statistics.median(round_.gateway_us for round_ in rounds), 2),
        "group_us_per_token": round(statistics.median(round_.group_us for round_ in rounds), 2),
        "us_per_token": round(statistics.median(_total_us(round_) for round_ in rounds), 2),
        "us_per_token_of_rounds": [round(_total_us(round_), 2) for round_ in rounds],
        "delay_ms": summary([delay for round_ in rounds for delay in round_.delays_ms], digits=3),
    }


def _total_us(round_: Round) -> float:
    return round_.gateway_us + round_.group_us


def main() -> None:
    """Measure, and write the figures as text, JSON or a results file."""
    options = parse_options()
    started_at = datetime.now(UTC)
    plan = Plan(options.streams, options.tokens, options.step_ms / 1e3)
    rounds: dict[Way, list[Round]] = {"channel": [], "message per token": []}
    for _ in range(options.rounds):
        for way, done in rounds.items():
            done.append(run_round(way, plan))
    results = {way: figures(done) for way, done in rounds.items()}
    ratios = [
        _total_us(theirs) / _total_us(ours)
        for ours, theirs in zip(rounds["channel"], rounds["message per token"], strict=True)
    ]
    report = {"plan": plan._asdict(), "ratio": round(statistics.median(ratios), 2), "ways": results}
    if options.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        for way, result in results.items():
            sys.stdout.write(f"{way}: {', '.join(f'{name} {value}' for name, value in result.items())}\n")
        sys.stdout.write(f"one message per token costs {report['ratio']} times as much\n")
    if options.save:
        sys.stdout.write(f"wrote {shown(write_report('token-channel', started_at, report))}\n")


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=150, help="per stream and round")
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="write the figures to standard output as JSON")
    parser.add_argument("--save", action="store_true", help="write a results file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
