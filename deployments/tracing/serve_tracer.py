"""Which requests are traced: those of a sampled trace, which a client or Serve's proxy has begun.

Serve sets up OpenTelemetry in a replica as its `tracing_config` says, and has its own span be the current one of each
request that it samples. The gateway never begins a trace, so a request that Serve leaves out costs it one look.
"""

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

from deployments.tracing.request_trail import RequestTrail
from deployments.tracing.spans import SpanWriter

_TRACER_NAME = "eagleray"


def is_serve_tracing() -> bool:
    """Return whether Serve has set up OpenTelemetry in this process."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


class ServeTracer:
    """Follows what Serve follows."""

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer(_TRACER_NAME)
        self._propagator = TraceContextTextMapPropagator()

    def follow(self, headers: Headers) -> "FollowedRequest | None":
        """Return the trace that the current request belongs to, if it is sampled.

        The parent is Serve's span. A client's `traceparent` has the last word on whether there is a trace and on which,
        for Serve passes a decision against one on to its replicas as if there were none.
        """
        current = trace.get_current_span().get_span_context()
        stated = self._stated(headers)
        if stated is not None and (stated.trace_id != current.trace_id or not stated.trace_flags.sampled):
            current = stated
        is_sampled = current.is_valid and current.trace_flags.sampled
        return FollowedRequest(self._tracer, current) if is_sampled else None

    def _stated(self, headers: Headers) -> SpanContext | None:
        if "traceparent" not in headers:
            return None
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        # Into an empty context: what does not parse must not be taken for the current span.
        found = trace.get_current_span(self._propagator.extract(carrier, Context())).get_span_context()
        return found if found.is_valid else None


class FollowedRequest:
    """A request whose spans are wanted."""

    def __init__(self, tracer: trace.Tracer, parent: SpanContext) -> None:
        self._tracer = tracer
        self._parent = parent

    def write(self, trail: RequestTrail) -> None:
        """Make the spans of the request, which has ended."""
        context = trace.set_span_in_context(NonRecordingSpan(self._parent), Context())
        SpanWriter(self._tracer, trail).write(context)
