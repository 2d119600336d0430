"""The ASGI app of both generation endpoints: read, prepare, run, answer whole or as a stream."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

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
from deployments.metrics.gateway_metrics import GatewayMetrics
from deployments.openai.job import Job
from deployments.openai.responses import CollectedChoice
from deployments.openai.sse import DONE, SseResponse

Prepare = Callable[[bytes, Caller, ModelCatalog, HttpLimits], Awaitable[Job]]
"""Turns a caller's body into a job. Raises RequestError, NotReady."""


class GatewayServices(NamedTuple):
    """What a gateway lends to its endpoints."""

    limits: HttpLimits
    streams: UnbrokenStreams
    catalog: ModelCatalog
    readiness: Readiness
    metrics: GatewayMetrics


class GenerationEndpoint:
    """Serves one path. What goes wrong is raised; the ingress boundary answers for it."""

    def __init__(self, operation: str, prepare: Prepare, services: GatewayServices) -> None:
        self._operation = operation
        self._prepare = prepare
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises EaglerayError, ClientDisconnect."""
        services, caller = self._services, caller_of(scope)
        with services.metrics.request(self._operation, caller.tenant) as record:
            body = await read_body(Headers(scope=scope), receive, services.limits)
            job = await self._prepare(body, caller, services.catalog, services.limits)
            record.started(job.model, job.choices, job.fields.num_completions)
            reservation = caller.quota.reserve(job.max_total_tokens)
            try:
                if job.fields.stream:
                    events = SseResponse(send, job.writer.opening())
                    is_read = events.watch_reader(services.limits.slow_client_s)
                    await run_while_connected(self._stream(job, events), receive, is_read)
                else:
                    await run_while_connected(self._whole(job, scope, receive, send), receive)
            finally:
                reservation.settle(job.num_computed_tokens)
            services.readiness.saw_tokens(job.model)

    async def _stream(self, job: Job, events: SseResponse) -> None:
        def emit(delta: Delta) -> Awaitable[None]:
            return events.write(job.writer.event(delta))

        await run_choices(job.choices, self._services.streams, emit)
        usage = job.writer.usage_event(job.usage) if job.fields.has_stream_usage else b""
        await events.end(usage + DONE)

    async def _whole(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        collected = [CollectedChoice() for _ in job.choices]

        async def emit(delta: Delta) -> None:
            collected[delta.choice].add(delta)

        await run_choices(job.choices, self._services.streams, emit)
        body = job.writer.whole(collected, job.usage)
        await Response(body, media_type="application/json")(scope, receive, send)
