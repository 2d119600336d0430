"""Several gateway copies behind one port that hands requests to them in turn, as Serve's proxy hands them out."""

import asyncio
import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send

from cluster.submit_target import SubmitTarget
from deployments.gateway.config import GatewayConfig
from deployments.gateway.gateway import Gateway
from deployments.metrics.copies import CopyPage
from tests.support.gateways import announce_all, make_gateway


@contextmanager
def gateway_copies(targets: Sequence[SubmitTarget], config: GatewayConfig, num_copies: int) -> Iterator[str]:
    """Yield the base URL of `num_copies` gateways that know all `targets` and each other; gone afterwards."""
    listener = socket.create_server(("127.0.0.1", 0))
    server: uvicorn.Server | None = None
    ready = threading.Event()
    copies: list[Gateway] = []

    async def ask_copies() -> list[CopyPage]:
        # What Serve carries is bytes.
        pages = [msgspec.msgpack.encode(copy.metrics_page()) for copy in copies]
        return [msgspec.msgpack.decode(page, type=CopyPage) for page in pages]

    async def serve() -> None:
        nonlocal server
        for number in range(num_copies):
            copies.append(make_gateway(targets, config, name=f"copy-{number}", ask_copies=ask_copies))
            await announce_all(copies[-1], targets)
        apps = itertools.cycle([copy.asgi_app() for copy in copies])

        async def front(scope: Scope, receive: Receive, send: Send) -> None:
            await next(apps)(scope, receive, send)

        server = uvicorn.Server(uvicorn.Config(front, log_level="error", lifespan="off", timeout_graceful_shutdown=2))
        ready.set()
        await server.serve(sockets=[listener])
        for copy in copies:
            await copy.close()

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
