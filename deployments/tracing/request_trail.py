"""What is known of one HTTP request when it has ended: stamps that are taken whether or not anybody traces.

Spans are made out of them afterwards, so a request that is not traced costs its stamps, and a token nothing at all.
"""

import time
from types import TracebackType
from typing import Protocol

from starlette.datastructures import Headers

from core.clock import Clock, MonotonicClock
from deployments.http.boundary import how_it_ended
from deployments.openai.job import Job


class RequestTrail:
    """One request to a generation endpoint, from its arrival to its end."""

    def __init__(self, operation: str, clock: Clock) -> None:
        self.operation = operation
        """As OpenTelemetry's GenAI conventions name it: chat, text_completion."""
        self.received_s = self.ended_s = clock.now_s()
        self.prepared_s: float | None = None
        """When body, template and tokens were done; None: it has failed before."""
        self.job: Job | None = None
        self.error: BaseException | None = None
        self._clock = clock
        self._epoch_ns = time.time_ns() - int(self.received_s * 1e9)

    def prepared(self, job: Job) -> None:
        """Take note of what is to be run."""
        self.job = job
        self.prepared_s = self._clock.now_s()

    def ended(self, error: BaseException | None) -> None:
        """Take note of the end."""
        self.error = error
        self.ended_s = self._clock.now_s()

    def epoch_ns(self, at_s: float) -> int:
        """Return a stamp of the gateway's clock as nanoseconds since 1970.

        Wall time is read once a request, so that spans keep the order and the lengths of the monotonic clock.
        """
        return self._epoch_ns + int(at_s * 1e9)

    @property
    def error_type(self) -> str | None:
        """The code of what ended the request early; never a message, which may quote the caller."""
        return how_it_ended(self.error)


class Following(Protocol):
    """A trace that wants to hear of one request."""

    def write(self, trail: RequestTrail) -> None:
        """Make the spans of a request that has ended."""
        ...


class Tracer(Protocol):
    """Decides which requests are traced."""

    def follow(self, headers: Headers) -> Following | None:
        """Return the trace that the current request belongs to, if it is sampled."""
        ...


class RequestTrails:
    """Keeps the trail of each request, and hands it to the trace it belongs to, if any."""

    def __init__(self, tracer: Tracer | None = None, clock: Clock | None = None) -> None:
        self.clock = clock or MonotonicClock()
        self._tracer = tracer

    def request(self, operation: str, headers: Headers) -> "OpenTrail":
        """Return a context manager around one request."""
        following = None if self._tracer is None else self._tracer.follow(headers)
        return OpenTrail(RequestTrail(operation, self.clock), following)


class OpenTrail:
    """A trail that ends with its block."""

    def __init__(self, trail: RequestTrail, following: Following | None) -> None:
        self._trail = trail
        self._following = following

    def __enter__(self) -> RequestTrail:
        return self._trail

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._trail.ended(error)
        if self._following is not None:
            self._following.write(self._trail)


def serve_trails() -> RequestTrails:
    """Return trails that are traced if Serve traces in this process; OpenTelemetry is not needed if it does not."""
    try:
        from deployments.tracing.serve_tracer import ServeTracer, is_serve_tracing
    except ImportError:
        return RequestTrails()
    return RequestTrails(ServeTracer() if is_serve_tracing() else None)
