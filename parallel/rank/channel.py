"""One end of the rank channel: typed messages over a blocking socket. No torch, the leader uses it too."""

import contextlib
import select
import socket
import struct
from typing import Generic, TypeVar

import msgspec

from core.errors import ReplicaFailed
from core.frames import ConnectionLost, authenticate, receive_frame, send_frame
from parallel.rank.messages import FromRank, ToRank

Incoming = TypeVar("Incoming")
Outgoing = TypeVar("Outgoing")

_HANDSHAKE_TIMEOUT_S = 5.0
_TIMEVAL = struct.Struct("@ll")
"""The kernel's `struct timeval`: seconds, microseconds."""
_KEEPALIVE_IDLE_S, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_PROBES = 10, 5, 3
"""A machine that vanished without a word is noticed after 25 s; a process that ended, at once."""


class MessageSocket(Generic[Incoming, Outgoing]):
    """Sends `Outgoing`, receives `Incoming`. One thread may send while another receives."""

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[Incoming]) -> None:
        self._sock = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = decoder

    def fileno(self) -> int:
        """Return the descriptor, for selectors."""
        return self._sock.fileno()

    def encode(self, message: Outgoing) -> bytes:
        """Return a message as `send_encoded` takes it, to be sent to many."""
        return self._encoder.encode(message)

    def send(self, message: Outgoing) -> None:
        """Send one message; blocks while the peer's buffer is full. Raises ConnectionLost."""
        send_frame(self._sock, self._encoder.encode(message))

    def send_encoded(self, message: bytes) -> None:
        """Send what `encode` returned. Raises ConnectionLost."""
        send_frame(self._sock, message)

    def receive(self) -> Incoming:
        """Return the next message; blocks. Raises ConnectionLost, or ReplicaFailed for a message it does not know."""
        frame = receive_frame(self._sock)
        try:
            return self._decoder.decode(frame)
        except msgspec.DecodeError as error:
            raise ReplicaFailed(f"the rank channel carried a message it does not know: {error}") from None

    def has_message(self) -> bool:
        """Whether `receive` would find the beginning of a message now; also true at the end of the connection."""
        return bool(select.select([self._sock], [], [], 0)[0])

    def finish(self, timeout_s: float) -> None:
        """Say that nothing follows, and wait until the peer closes so that it reads everything; then close."""
        # OSError: the peer is gone or takes too long, and nothing is left to do for it.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            self._sock.settimeout(timeout_s)
            while self._sock.recv(65536):
                pass
        self._sock.close()

    def wake(self) -> None:
        """Break the connection, so that whoever blocks on it, at either end, sees its end; `close` comes later."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        self._sock.close()

    def detach(self) -> socket.socket:
        """Return the connection for other uses; the caller closes it."""
        return self._sock


LeaderSocket = MessageSocket[ToRank, FromRank]
"""The connection to the leader, at a rank."""
RankSocket = MessageSocket[FromRank, ToRank]
"""The connection to a rank, at the leader."""


def connect_to_leader(host: str, port: int, secret: bytes) -> tuple[LeaderSocket, str]:
    """Return an authenticated connection and this machine's address on it. Raises ConnectionLost."""
    sock = open_connection(host, port, secret)
    return MessageSocket(sock, msgspec.msgpack.Decoder(ToRank)), sock.getsockname()[0]


def open_connection(host: str, port: int, secret: bytes) -> socket.socket:
    """Return an authenticated connection to the leader. Raises ConnectionLost."""
    try:
        sock = socket.create_connection((host, port), timeout=_HANDSHAKE_TIMEOUT_S)
    except OSError as error:
        raise ConnectionLost(f"leader at {host}:{port} is not there: {error}") from None
    _open(sock, secret)
    return sock


def accept_rank(listener: socket.socket, secret: bytes, send_timeout_s: float) -> RankSocket:
    """Return the next connection, authenticated. Raises ConnectionLost if the peer is a stranger; ignore it then."""
    try:
        sock, _ = listener.accept()
    except OSError as error:
        raise ConnectionLost(f"peer left before it was let in: {error}") from None
    _open(sock, secret)
    # A rank that does not read must not hold the leader for ever; a kernel timeout keeps the socket blocking.
    seconds, fraction = divmod(send_timeout_s, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(seconds), int(fraction * 1e6)))
    return MessageSocket(sock, msgspec.msgpack.Decoder(FromRank))


def _open(sock: socket.socket, secret: bytes) -> None:
    sock.settimeout(_HANDSHAKE_TIMEOUT_S)
    try:
        authenticate(sock, secret)
    except ConnectionLost:
        sock.close()
        raise
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
