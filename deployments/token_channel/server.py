"""The group's end of the token channel: accepts gateways, and tells each of them how busy the group is.

A gateway that reads too slowly is not waited for: past `max_buffered_bytes` unsent its connection is dropped and its
requests are cancelled, so that neither the engine nor the other gateways notice.
"""

import asyncio
import logging

import msgspec

from cluster.status import ChannelAddress
from cluster.submit_target import SubmitTarget
from core.frames import pack
from deployments.token_channel.connection import MAX_BUFFERED_BYTES, FrameConnection
from deployments.token_channel.messages import Load
from deployments.token_channel.session import GatewaySession
from engine.request import EngineLoad

logger = logging.getLogger(__name__)

LOAD_PERIOD_S = 0.1
"""Between two reports while there is work. Sixteen routers keep 95 % of one router's goodput at 0.1 s, 77 % at 1 s
(replayed on Mooncake traces)."""
IDLE_PERIODS = 10
"""An unchanged idle report goes out once in that many periods; gateways take it as a sign of life."""

_NO_ENGINE = EngineLoad(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""What a group reports while it has no engine: a sign of life. Gateways see from its announced state not to use it."""


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
    ) -> None:
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
        self._last_load: EngineLoad | None = None
        self._num_reports = 0
        self._num_quiet_periods = 0
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
        tasks = [self._load_task, *self._sessions.values()]
        for session in list(self._sessions):
            session.connection.close("the group closed the channel")
        await asyncio.gather(*(session.connection.wait_closed() for session in list(self._sessions)))
        await asyncio.gather(*tasks, return_exceptions=True)
        await listener.wait_closed()

    def report_load(self) -> None:
        """Send a Load to every gateway if there is work, a change, or nothing was said for a second."""
        load = self._load()
        self._num_quiet_periods += 1
        is_busy = load.num_running > 0 or load.num_waiting > 0
        if is_busy or load != self._last_load or self._num_quiet_periods >= IDLE_PERIODS:
            self._num_quiet_periods = 0
            self._last_load = load
            frame = self._load_frame(load)
            for session in list(self._sessions):
                session.send_packed(frame)

    def _load(self) -> EngineLoad:
        load = self._target.load()
        return load if load is not None else _NO_ENGINE

    def _load_frame(self, load: EngineLoad) -> bytes:
        self._num_reports += 1
        return pack(msgspec.msgpack.encode(Load(self._num_reports, load)))

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
        session.send_packed(self._load_frame(self._load()))

    def _forget(self, session: GatewaySession) -> None:
        self._sessions.pop(session, None)
