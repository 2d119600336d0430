"""Processor time of a gateway per request, traced and not: what stamps, and what spans cost.

    python -m benchmarks.tracing_cost
    python -m benchmarks.tracing_cost --rounds 15 --save

The gateway is the real application, called in process; its group gives each request its tokens at once. Four ways, by
turns: tracing off; on, but the request in no trace; on, and the client's `traceparent` says no; and sampled. Spans are
batched and encoded as for a collector, then dropped. Processor time of all threads.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from starlette.types import ASGIApp, Message

from benchmarks.gateway_path import ready_group
from benchmarks.report import shown, write_report
from cluster.status import ChannelAddress, GroupStatus
from deployments.gateway.config import GatewayConfig
from deployments.gateway.gateway import Gateway
from deployments.groups.directory import GroupDirectory
from deployments.groups.in_process import InProcessTransport
from deployments.groups.transport import GroupListener
from deployments.tracing.request_trail import RequestTrails
from deployments.tracing.serve_tracer import ServeTracer
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement, StepEvents, TokenEvent
from engine.request_timings import RequestTimings, StayTimes

_NOWHERE = ChannelAddress("127.0.0.1", 1, b"secret")
_TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"
_WAYS: Mapping[str, tuple[bool, str | None]] = {
    "off": (False, None),
    "on_without_a_trace": (True, None),
    "on_not_sampled": (True, _TRACE + "00"),
    "on_sampled": (True, _TRACE + "01"),
}
"""Whether Serve traces, and the `traceparent`."""


class PromptGroup:
    """A SubmitTarget that gives every request all its tokens at once, one event each."""

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        """Answer."""
        name, num_tokens = request.request_id, request.sampling.max_tokens
        timings = RequestTimings([StayTimes(1e-5, 0.0, 1e-5, 1e-5, len(request.token_ids))])
        sink(StepEvents(events=[TokenEvent(name, [500], timings=timings)]))
        for _ in range(num_tokens - 2):
            sink(StepEvents([name], [500], []))
        sink(StepEvents(events=[TokenEvent(name, [500], "length", timings=timings)]))
        return Placement.of(request)

    def cancel(self, request_id: str) -> None:
        """Do nothing; every request has ended."""

    def load(self) -> EngineLoad:
        """Return an idle group's."""
        return EngineLoad(0, 0, 0, 8, 8, 0, 0, 0, 0, 0, 0)

    def status(self) -> GroupStatus:
        """Return a ready group."""
        return ready_group(_NOWHERE)


class EncodingExporter(SpanExporter):
    """Encodes spans as for a collector, and drops them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Encode."""
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


async def make_app(is_tracing: bool) -> ASGIApp:
    """Return a gateway that is ready."""
    group = PromptGroup()

    async def connect(address: ChannelAddress, group_id: str, listener: GroupListener) -> InProcessTransport:
        return InProcessTransport(group)

    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(0.0))
    provider.add_span_processor(BatchSpanProcessor(EncodingExporter()))
    trails = RequestTrails(ServeTracer(provider.get_tracer("bench")) if is_tracing else None)
    gateway = Gateway(GatewayConfig(), GroupDirectory(connect=connect), trails=trails)
    app = gateway.asgi_app()
    gateway.announce(group.status())
    while b'"bench"' not in await call(app, "GET", "/v1/models", b""):
        await asyncio.sleep(0.02)
    return app


async def call(app: ASGIApp, method: str, path: str, body: bytes, traceparent: str | None = None) -> bytes:
    """Return the body of the answer."""
    parts: list[bytes] = []
    requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not requests:
            await asyncio.Event().wait()  # the client stays
        return requests.pop()

    async def send(message: Message) -> None:
        parts.append(message.get("body", b""))

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    if traceparent is not None:
        headers.append((b"traceparent", traceparent.encode()))
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "root_path": ""}
    await app(scope, receive, send)
    return b"".join(parts)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return microseconds of processor time per request, each way."""
    apps = {is_tracing: await make_app(is_tracing) for is_tracing in (False, True)}
    fields = {"model": "bench", "prompt": "Hi", "max_tokens": options.tokens, "stream": True, "ignore_eos": True}
    body = json.dumps(fields).encode()
    rounds: dict[str, list[float]] = {way: [] for way in _WAYS}
    for number in range(options.rounds + 1):
        for way, (is_tracing, traceparent) in _WAYS.items():
            began_s = time.process_time()
            for _ in range(options.requests):
                await call(apps[is_tracing], "POST", "/v1/completions", body, traceparent)
            seconds = time.process_time() - began_s
            if number:  # the first round warms up
                rounds[way].append(round(1e6 * seconds / options.requests, 1))
    return {way: {"median": statistics.median(each), "of_rounds": each} for way, each in rounds.items()}


def main() -> None:
    """Measure, and write the figures as text or a results file."""
    options = parse_options()
    started_at = datetime.now(UTC)
    ways = asyncio.run(measure(options))
    for way, figures in ways.items():
        sys.stdout.write(f"{way}: {figures['median']} us a request of {options.tokens} tokens\n")
    if options.save:
        load = {"tokens": options.tokens, "requests": options.requests, "rounds": options.rounds}
        report = {**load, "us_per_request": ways}
        sys.stdout.write(f"wrote {shown(write_report('tracing-cost', started_at, report))}\n")
    sys.stdout.flush()


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64, help="per request")
    parser.add_argument("--requests", type=int, default=100, help="per round and way")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="write a results file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
