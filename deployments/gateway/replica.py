"""The gateway as a Ray Serve ingress deployment. Its process loads no torch."""

import asyncio
import logging

import msgspec
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from cluster.status import GroupStatus
from core.cores import take_normal_priority
from core.errors import NotReady
from core.logs import configure_logging
from deployments.gateway.config import GatewayConfig
from deployments.gateway.gateway import Gateway
from deployments.metrics.copies import CopyPage
from deployments.tracing.request_trail import serve_trails

logger = logging.getLogger(__name__)

_COPIES_TIMEOUT_S = 2.0
"""Prometheus waits ten seconds."""


class GatewayReplica:
    """One copy of the gateway. Wrapped by `serve.ingress()` in app.py."""

    def __init__(self, config: GatewayConfig) -> None:
        configure_logging()
        take_normal_priority()
        name = serve.get_replica_context().replica_id.unique_id
        self._gateway = Gateway(
            config, start=start_application, trails=serve_trails(), name=name, ask_copies=Copies().pages
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the HTTP application; Serve calls this once, on the replica's loop."""
        return self._gateway.asgi_app()

    async def announce(self, data: bytes) -> None:
        """Take a GroupStatus (msgpack) from a replica group; called by `Announcer` through `handle.broadcast`."""
        self._gateway.announce(msgspec.msgpack.decode(data, type=GroupStatus))

    async def metrics_page(self) -> bytes:
        """Return this copy's CopyPage (msgpack); called by the copy that Prometheus asks."""
        return msgspec.msgpack.encode(self._gateway.metrics_page())


class Copies:
    """All copies of the gateway that this process is one of."""

    def __init__(self) -> None:
        self._handle: DeploymentHandle | None = None

    async def pages(self) -> list[CopyPage]:
        """Return the page of every copy that can be asked; none, if one of them does not answer in time."""
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(_own_handle)
            answers = self._handle.broadcast("metrics_page")
            found = await answers.results_async(timeout_s=_COPIES_TIMEOUT_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("metrics of this copy alone", extra={"error": str(error)})
            return []
        return [msgspec.msgpack.decode(data, type=CopyPage) for data in found if isinstance(data, bytes)]


def _own_handle() -> DeploymentHandle:
    context = serve.get_replica_context()
    return serve.get_deployment_handle(context.deployment, context.app_name)


async def start_application(name: str) -> None:
    """Return when a model's application has a replica: a call that waits has Serve start one. Raises NotReady."""
    try:
        handle = await asyncio.to_thread(serve.get_app_handle, name)
        await handle.wake.remote()
    except (RayError, RayServeException) as error:
        raise NotReady(f"application {name} does not start: {error}", retry_after_s=None) from None
