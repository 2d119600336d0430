"""A gateway behind a real HTTP server, in a thread of the test's process."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

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
    listener = socket.create_server(("127.0.0.1", 0))
    if send_buffer_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    server: uvicorn.Server | None = None
    ready = threading.Event()

    async def serve() -> None:
        nonlocal server
        gateway = make_gateway(targets, config, **options)
        await announce_all(gateway, targets)
        server = uvicorn.Server(uvicorn.Config(gateway.asgi_app(), log_level="error", timeout_graceful_shutdown=2))
        ready.set()
        await server.serve(sockets=[listener])
        await gateway.close()

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
