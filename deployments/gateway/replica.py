"""The gateway as a Ray Serve ingress deployment. Its process loads no torch."""

import msgspec
from starlette.types import ASGIApp

from cluster.status import GroupStatus
from core.cores import take_normal_priority
from core.logs import configure_logging
from deployments.gateway.config import GatewayConfig
from deployments.gateway.gateway import Gateway


class GatewayReplica:
    """One copy of the gateway. Wrapped by `serve.ingress()` in app.py."""

    def __init__(self, config: GatewayConfig) -> None:
        configure_logging()
        take_normal_priority()
        self._gateway = Gateway(config)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the HTTP application; Serve calls this once, on the replica's loop."""
        return self._gateway.asgi_app()

    async def announce(self, data: bytes) -> None:
        """Take a GroupStatus (msgpack) from a replica group; called by `Announcer` through `handle.broadcast`."""
        self._gateway.announce(msgspec.msgpack.decode(data, type=GroupStatus))
