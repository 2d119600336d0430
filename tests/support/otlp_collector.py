"""A collector of spans: OTLP over HTTP, protobuf, as OpenTelemetry's exporters send them. Bound to 127.0.0.1."""

from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.loopback_server import LoopbackServer, QuietHandler
from tests.support.spans import SpanSeen, SpanTree


class OtlpCollector:
    """Keeps what it is sent until `close`."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        """Every request, as it came."""
        collector = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.answer(200)

        self._server = LoopbackServer(Handler)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a process exports to this collector, soon after a span has ended."""
        return {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{self._server.url}/v1/traces", "OTEL_BSP_SCHEDULE_DELAY": "200"}

    @property
    def spans(self) -> list[SpanSeen]:
        """Every span that has come."""
        return [seen for body in list(self.bodies) for seen in _spans_in(body)]

    def tree(self, trace_id: str) -> SpanTree:
        """Return what has come of a trace."""
        return SpanTree(self.spans, trace_id)

    def services(self) -> set[str]:
        """Return the service names of the processes that have sent spans."""
        resources = [
            resource_spans.resource
            for body in list(self.bodies)
            for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans
        ]
        names = [item for resource in resources for item in resource.attributes if item.key == "service.name"]
        return {item.value.string_value for item in names}

    def close(self) -> None:
        """Stop listening."""
        self._server.close()


def _spans_in(body: bytes) -> list[SpanSeen]:
    return [
        _seen(span)
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def _seen(span: Span) -> SpanSeen:
    return SpanSeen(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        {item.key: _value(item.value) for item in span.attributes},
        tuple(link.span_id.hex() for link in span.links),
        span.status.code == Status.STATUS_CODE_ERROR,
    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    return getattr(value, kind) if kind else None
