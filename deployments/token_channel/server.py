"""The group's end of the token channel: accepts gateways, and tells each of them what routers want to know.

A gateway that reads too slowly is not waited for: past `max_buffered_bytes` unsent its connection is dropped and its
requests are cancelled, so that neither the engine nor the other gateways notice.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from cluster.status import ChannelAddress
from cluster.submit_target import SubmitTarget
from deployments.token_channel.connection import MAX_BUFFERED_BYTES, FrameConnection
from deployments.token_channel.gossip import PlacementGossip
from deployments.token_channel.reports import GroupReports
from deployments.token_channel.session import GatewaySession
from engine.prefix_feed import PrefixFeed

logger = logging.getLogger(__name__)

LOAD_PERIOD_S = 0.1
"""Between two reports while there is work. Sixteen routers keep 95 % of one router's goodput at 0.1 s, 77 % at 1 s
(replayed on Mooncake traces)."""


class TokenChannelServer:
    """Lets gateways submit to `target`. Lives on one event loop."""

    def __init__(
        self,
        target: SubmitTarget,
        secret: bytes,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertised_host: str | None = None,
        max_buffered_bytes: int = MAX_BUFFERED_BYTES,
        max_connections: int = 1024,
        load_period_s: float = LOAD_PERIOD_S,
        prefix_feed: Callable[[], PrefixFeed | None] = lambda: None,
    ) -> None:
        """`prefix_feed` returns that of the engine that serves now."""
        self._target = target
        self._address = ChannelAddress(host, port, secret)
        self._advertised_host = advertised_host if advertised_host is not None else host
        self._max_buffered_bytes = max_buffered_bytes
        self._max_connections = max_connections
        self._load_period_s = load_period_s
        self._listener: asyncio.Server | None = None
        self._load_task: asyncio.Task[None] | None = None
        self._sessions: dict[GatewaySession, asyncio.Task[None]] = {}
        self._owners: dict[str, GatewaySession] = {}
        self._reports = GroupReports(target, prefix_feed, time.monotonic)
        self._gossip = PlacementGossip(self._sessions)
        self._is_closed = False

    async def start(self) -> ChannelAddress:
        """Listen; return where. Port 0 becomes the one the system chose. Raises OSError if the address is taken."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._accept, self._address.host, self._address.port)
        port = self._listener.sockets[0].getsockname()[1]
        self._address = ChannelAddress(self._advertised_host, port, self._address.secret)
        self._load_task = loop.create_task(self._report_loads())
        logger.info("token channel listening", extra={"host": self._address.host, "port": port})
        return self._address

    @property
    def address(self) -> ChannelAddress:
        """Where gateways connect to: the advertised host (default: the bound one), the bound port, the secret."""
        return self._address

    @property
    def num_connections(self) -> int:
        """Connections of gateways, those still in the handshake included."""
        return len(self._sessions)

    @property
    def num_open_requests(self) -> int:
        """Accepted requests whose terminal event was not yet sent."""
        return len(self._owners)

    async def close(self) -> None:
        """Stop listening and close every connection; their open requests are cancelled. Idempotent."""
        self._is_closed = True
        if self._listener is None or self._load_task is None:
            return
        listener, self._listener = self._listener, None
        listener.close()
        self._load_task.cancel()
        self._gossip.drop()
        tasks = [self._load_task, *self._sessions.values()]
        for session in list(self._sessions):
            session.connection.close("the group closed the channel")
        await asyncio.gather(*(session.connection.wait_closed() for session in list(self._sessions)))
        await asyncio.gather(*tasks, return_exceptions=True)
        await listener.wait_closed()

    def report_load(self) -> None:
        """Send a Load to every gateway if there is work, a change, or nothing was said for a second."""
        if self._reports.send([session for session in self._sessions if session.is_welcome]):
            self._gossip.drop()

    async def _report_loads(self) -> None:
        while True:
            await asyncio.sleep(self._load_period_s)
            self.report_load()

    def _accept(self) -> FrameConnection:
        session = GatewaySession(
            self._target,
            self._owners,
            on_made=self._begin,
            on_lost=self._forget,
            on_placed=self._gossip.note,
            max_buffered_bytes=self._max_buffered_bytes,
        )
        return session.connection

    def _begin(self, session: GatewaySession) -> None:
        if self._is_closed:
            session.connection.drop("the group closed the channel")
            return
        if len(self._sessions) >= self._max_connections:
            logger.warning("gateway refused", extra={"reason": "too many connections", "max": self._max_connections})
            session.connection.drop("too many connections")
            return
        self._sessions[session] = asyncio.get_running_loop().create_task(self._serve(session))

    async def _serve(self, session: GatewaySession) -> None:
        await session.welcome(self._address.secret)
        if session.is_welcome:
            self._reports.send_first(session)

    def _forget(self, session: GatewaySession) -> None:
        self._sessions.pop(session, None)
