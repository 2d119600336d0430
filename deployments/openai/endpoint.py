"""The ASGI app of both generation endpoints: read, prepare, run, answer whole or as a stream."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.gateway.config import HttpLimits
from deployments.gateway.generation import Delta, run_choices
from deployments.gateway.model_catalog import ModelCatalog
from deployments.gateway.readiness import Readiness
from deployments.groups.unbroken import UnbrokenStreams
from deployments.http.caller import Caller, caller_of
from deployments.http.disconnect import run_while_connected
from deployments.http.limits import read_body
from deployments.live.page import LivePage
from deployments.metrics.gateway_metrics import GatewayMetrics
from deployments.openai.job import Job
from deployments.openai.responses import Closing, CollectedChoice
from deployments.openai.sse import DONE, SseResponse
from deployments.openai.timings import Timings
from deployments.tracing.request_trail import RequestTrail, RequestTrails

Prepare = Callable[[bytes, Caller, ModelCatalog, HttpLimits], Awaitable[Job]]
"""Turns a caller's body into a job. Raises RequestError, NotReady."""


class GatewayServices(NamedTuple):
    """What a gateway lends to its endpoints."""

    limits: HttpLimits
    streams: UnbrokenStreams
    catalog: ModelCatalog
    readiness: Readiness
    metrics: GatewayMetrics
    trails: RequestTrails
    live: LivePage | None


class GenerationEndpoint:
    """Serves one path. What goes wrong is raised; the ingress boundary answers for it."""

    def __init__(self, operation: str, prepare: Prepare, services: GatewayServices) -> None:
        self._operation = operation
        self._prepare = prepare
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises EaglerayError, ClientDisconnect."""
        services, caller, headers = self._services, caller_of(scope), Headers(scope=scope)
        with (
            services.trails.request(self._operation, headers) as trail,
            services.metrics.request(self._operation, caller.tenant) as record,
        ):
            body = await read_body(headers, receive, services.limits)
            job = await self._prepare(body, caller, services.catalog, services.limits)
            trail.prepared(job)
            record.started(job.model, job.choices, job.fields.num_completions)
            if services.live is not None:
                services.live.watch(job.model, job.choices, record.received_s)
            reservation = caller.quota.reserve(job.max_total_tokens)
            try:
                if job.fields.stream:
                    events = SseResponse(send, job.writer.opening())
                    is_read = events.watch_reader(services.limits.slow_client_s)
                    await run_while_connected(self._stream(job, events, trail), receive, is_read)
                else:
                    await run_while_connected(self._whole(job, scope, receive, send, trail), receive)
            finally:
                reservation.settle(job.num_computed_tokens)
            services.readiness.saw_tokens(job.model)

    async def _stream(self, job: Job, events: SseResponse, trail: RequestTrail) -> None:
        def emit(delta: Delta) -> Awaitable[None]:
            return events.write(job.writer.event(delta))

        await run_choices(job.choices, self._services.streams, emit)
        await events.end(self._closing(job, trail) + DONE)

    async def _whole(self, job: Job, scope: Scope, receive: Receive, send: Send, trail: RequestTrail) -> None:
        collected = [CollectedChoice() for _ in job.choices]

        async def emit(delta: Delta) -> None:
            collected[delta.choice].add(delta)

        await run_choices(job.choices, self._services.streams, emit)
        body = job.writer.whole(collected, job.usage, self._timings(job, trail))
        await Response(body, media_type="application/json")(scope, receive, send)

    def _closing(self, job: Job, trail: RequestTrail) -> bytes:
        """Return the event without choices, if the caller asked for anything that is in it."""
        usage = job.usage if job.fields.has_stream_usage else None
        timings = self._timings(job, trail)
        if usage is None and timings is None:
            return b""
        return job.writer.closing_event(Closing(usage or msgspec.UNSET, timings or msgspec.UNSET))

    def _timings(self, job: Job, trail: RequestTrail) -> Timings | None:
        """Return where the time went, if the caller asked."""
        if not job.fields.has_timings:
            return None
        return Timings.of(job.choices, trail.received_s, self._services.trails.clock)
