"""One authenticated connection of the token channel, either end: whole frames in, whole frames out, both bounded."""

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import cast

import msgspec

from core.errors import EaglerayError
from core.frames import ConnectionLost, FrameBuffer, authenticate_stream, pack

MAX_BUFFERED_BYTES = 8 * 2**20
"""Unsent bytes a connection may hold; a peer that leaves more unread is cut off."""

_UNACKNOWLEDGED_LIMIT_MS = 10_000
"""A peer whose machine does not acknowledge what was sent for this long is gone."""

_LINGER_S = 1.0


class FrameConnection(asyncio.Protocol):
    """Frames in by callback, frames out without waiting. Lives on one event loop.

    `on_frame` takes each payload that comes after `authenticate`; if it raises a decoding error or ConnectionLost, this
    connection, and nothing else, is dropped. `on_lost` is called once, with the reason, when the connection is gone;
    `on_made`, if given, once when there is one to authenticate.
    """

    def __init__(
        self,
        on_frame: Callable[[bytes], None],
        on_lost: Callable[[str], None],
        *,
        on_made: Callable[[], None] | None = None,
        max_buffered_bytes: int = MAX_BUFFERED_BYTES,
    ) -> None:
        self._on_made = on_made
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._max_buffered_bytes = max_buffered_bytes
        self._frames = FrameBuffer()
        self._reason = "peer closed the connection"
        self._is_open = False
        self._abort_timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return self._is_open

    @property
    def peer(self) -> str:
        """Address of the other end, for logs."""
        return str(self._transport.get_extra_info("peername"))

    async def authenticate(self, secret: bytes, timeout_s: float = 5.0) -> None:
        """Do the handshake; frames flow from here on. Raises ConnectionLost, and the connection is dropped."""
        reader = self._handshake
        assert reader is not None, "authenticate is called once"
        try:
            await authenticate_stream(reader, self._writer, secret, timeout_s)
        except ConnectionLost as error:
            self.drop(error.message)
            raise
        # Nothing below gives way to the loop, so no byte can slip between the handshake's buffer and ours.
        self._handshake = None
        reader.feed_eof()
        self.data_received(await reader.read())

    def send(self, payload: bytes) -> None:
        """Queue one frame; does nothing on a closed connection."""
        self.send_packed(pack(payload))

    def send_packed(self, frames: bytes) -> None:
        """Queue frames that `pack` made; drops the connection if the peer leaves too much unread."""
        if not self._is_open:
            return
        self._transport.write(frames)
        if self._transport.get_write_buffer_size() > self._max_buffered_bytes:
            self.drop(f"peer left more than {self._max_buffered_bytes} bytes unread")

    def drop(self, reason: str) -> None:
        """Cut the connection now, unsent frames included."""
        if self._is_open:
            self._is_open = False
            self._reason = reason
            self._transport.abort()

    def close(self, reason: str) -> None:
        """Close once what is queued was sent, or after a second if the peer does not read."""
        if self._is_open:
            self._is_open = False
            self._reason = reason
            self._transport.close()
            self._abort_timer = self._loop.call_later(_LINGER_S, self._transport.abort)

    async def wait_closed(self) -> None:
        """Return when the connection is gone and `on_lost` was called."""
        await asyncio.shield(self._closed)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._loop = asyncio.get_running_loop()
        # A cast, for uvloop's transports have the methods but not the base class.
        self._transport = cast(asyncio.Transport, transport)
        self._handshake: asyncio.StreamReader | None = asyncio.StreamReader(loop=self._loop)
        self._handshake.set_transport(transport)
        # Kept for the connection's life: a StreamWriter closes its transport when it is collected.
        self._writer = asyncio.StreamWriter(self._transport, self, self._handshake, self._loop)
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._is_open = True
        _give_up_on_dead_peers(self._transport)
        if self._on_made is not None:
            self._on_made()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._handshake is not None:
            self._handshake.feed_data(data)
            return
        try:
            for payload in self._frames.feed(data):
                if not self._is_open:
                    return
                self._on_frame(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.drop(f"peer sent a malformed frame: {error}")
        except ConnectionLost as error:
            self.drop(error.message)
        except EaglerayError as error:
            self.drop(f"peer sent a frame with impossible values: {error.message}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio, once."""
        if self._is_open and exc is not None:
            self._reason = f"connection broke: {exc}"
        self._is_open = False
        if self._handshake is not None:
            self._handshake.feed_eof()
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        self._on_lost(self._reason)
        self._closed.set_result(None)


def _give_up_on_dead_peers(transport: asyncio.Transport) -> None:
    # Without it a machine that vanishes is noticed after a quarter of an hour of retransmissions.
    if sys.platform == "linux":
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_LIMIT_MS)
