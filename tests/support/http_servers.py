"""A gateway behind a real HTTP server, in a thread of the test's process."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp

from cluster.submit_target import SubmitTarget
from deployments.gateway.config import GatewayConfig
from tests.support.gateways import announce_all, make_gateway


@contextmanager
def http_gateway(
    targets: Sequence[SubmitTarget],
    config: GatewayConfig | None = None,
    send_buffer_bytes: int | None = None,
    **options: Any,
) -> Iterator[str]:
    """Yield the base URL of a gateway that knows all `targets`; it is gone afterwards.

    `send_buffer_bytes`: what the kernel holds of an answer that is not read. Default: up to megabytes.
    """

    async def make() -> Served:
        gateway = make_gateway(targets, config, **options)
        await announce_all(gateway, targets)
        return Served(gateway.asgi_app(), gateway.close)

    with asgi_server(make, send_buffer_bytes) as url:
        yield url


class Served(NamedTuple):
    """An app that is ready, and what is to be done when it is not served any more."""

    app: ASGIApp
    close: Callable[[], Awaitable[None]]


@contextmanager
def asgi_server(
    make: Callable[[], Awaitable[Served]], send_buffer_bytes: int | None = None, *, has_lifespan: bool = True
) -> Iterator[str]:
    """Yield the base URL of what `make` makes on the server's own loop; it is gone afterwards."""
    listener = socket.create_server(("127.0.0.1", 0))
    if send_buffer_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    server: uvicorn.Server | None = None
    ready = threading.Event()

    async def serve() -> None:
        nonlocal server
        served = await make()
        lifespan = "auto" if has_lifespan else "off"
        config = uvicorn.Config(served.app, log_level="error", lifespan=lifespan, timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        ready.set()
        await server.serve(sockets=[listener])
        await served.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        assert server is not None
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"
