"""Several gateway copies behind one port that hands requests to them in turn, as Serve's proxy hands them out."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
from starlette.types import Receive, Scope, Send

from cluster.submit_target import SubmitTarget
from deployments.gateway.config import GatewayConfig
from deployments.gateway.gateway import Gateway
from deployments.metrics.copies import CopyPage
from tests.support.gateways import announce_all, make_gateway
from tests.support.http_servers import Served, asgi_server


@contextmanager
def gateway_copies(targets: Sequence[SubmitTarget], config: GatewayConfig, num_copies: int) -> Iterator[str]:
    """Yield the base URL of `num_copies` gateways that know all `targets` and each other; gone afterwards."""
    copies: list[Gateway] = []

    async def ask_copies() -> list[CopyPage]:
        # What Serve carries is bytes.
        pages = [msgspec.msgpack.encode(copy.metrics_page()) for copy in copies]
        return [msgspec.msgpack.decode(page, type=CopyPage) for page in pages]

    async def make() -> Served:
        for number in range(num_copies):
            copies.append(make_gateway(targets, config, name=f"copy-{number}", ask_copies=ask_copies))
            await announce_all(copies[-1], targets)
        apps = itertools.cycle([copy.asgi_app() for copy in copies])

        async def front(scope: Scope, receive: Receive, send: Send) -> None:
            await next(apps)(scope, receive, send)

        return Served(front, close)

    async def close() -> None:
        for copy in copies:
            await copy.close()

    with asgi_server(make, has_lifespan=False) as url:
        yield url
