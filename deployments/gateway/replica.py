"""The gateway as a Ray Serve ingress deployment. Its process loads no torch."""

import asyncio

import msgspec
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.types import ASGIApp

from cluster.status import GroupStatus
from core.cores import take_normal_priority
from core.errors import NotReady
from core.logs import configure_logging
from deployments.gateway.config import GatewayConfig
from deployments.gateway.gateway import Gateway


class GatewayReplica:
    """One copy of the gateway. Wrapped by `serve.ingress()` in app.py."""

    def __init__(self, config: GatewayConfig) -> None:
        configure_logging()
        take_normal_priority()
        self._gateway = Gateway(config, start=start_application)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the HTTP application; Serve calls this once, on the replica's loop."""
        return self._gateway.asgi_app()

    async def announce(self, data: bytes) -> None:
        """Take a GroupStatus (msgpack) from a replica group; called by `Announcer` through `handle.broadcast`."""
        self._gateway.announce(msgspec.msgpack.decode(data, type=GroupStatus))


async def start_application(name: str) -> None:
    """Return when a model's application has a replica: a call that waits has Serve start one. Raises NotReady."""
    try:
        handle = await asyncio.to_thread(serve.get_app_handle, name)
        await handle.wake.remote()
    except (RayError, RayServeException) as error:
        raise NotReady(f"application {name} does not start: {error}", retry_after_s=None) from None
