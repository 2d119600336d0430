"""Length-limited frames on a stream socket, and the handshake that opens one.

A frame is a 4-byte little-endian length and that many bytes of msgpack (msgspec, never pickle). A connection starts
with a mutual challenge: each side proves that it knows the shared secret by HMAC-SHA256 over the other's nonce, so the
secret itself never crosses the wire and a stranger is refused before one frame of ours is parsed.
"""

import asyncio
import hashlib
import hmac
import secrets
import socket
import struct

from core.errors import EaglerayError

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A frame over this is a bug or an attack; the connection is closed."""

_LENGTH = struct.Struct("<I")
_NONCE_BYTES = 32
_MAC_BYTES = 32


class ConnectionLost(EaglerayError):
    """The peer closed the connection, or broke the protocol."""

    code = "connection_lost"


def pack(payload: bytes) -> bytes:
    """Return `payload` with its length in front."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {len(payload)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


def send_frame(sock: socket.socket, payload: bytes) -> None:
    """Write one frame; blocks while the peer's buffer is full. Raises ConnectionLost."""
    try:
        sock.sendall(pack(payload))
    except OSError as error:
        raise ConnectionLost(f"peer is gone while sending: {error}") from None


def receive_frame(sock: socket.socket) -> bytes:
    """Read one frame; blocks (or times out as the socket does, with TimeoutError). Raises ConnectionLost."""
    (length,) = _LENGTH.unpack(_receive_exactly(sock, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ConnectionLost(f"peer announced a frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")
    return _receive_exactly(sock, length)


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """Read one frame. Raises ConnectionLost."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise ConnectionLost(f"peer announced a frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError) as error:
        raise ConnectionLost(f"peer is gone: {error}") from None


class FrameBuffer:
    """Cuts a byte stream into frames; holds at most one unfinished frame. For callers that are handed bytes."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that `data` completes, in order; keeps what is left. Raises ConnectionLost."""
        if self._rest:
            self._rest += data
            # An unfinished large frame comes in many reads; copying it at each would be quadratic.
            if len(self._rest) < _LENGTH.size or len(self._rest) - _LENGTH.size < self._announced(self._rest, 0):
                return []
            data = bytes(self._rest)
            self._rest.clear()
        payloads: list[bytes] = []
        start, end = 0, len(data)
        while end - start >= _LENGTH.size:
            begin = start + _LENGTH.size
            stop = begin + self._announced(data, start)
            if stop > end:
                break
            payloads.append(data[begin:stop])
            start = stop
        if start < end:
            self._rest += data[start:]
        return payloads

    @staticmethod
    def _announced(data: bytes | bytearray, start: int) -> int:
        (length,) = _LENGTH.unpack_from(data, start)
        if length > MAX_FRAME_BYTES:
            raise ConnectionLost(f"peer announced a frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")
        return length


def authenticate(sock: socket.socket, secret: bytes) -> None:
    """Prove and check knowledge of `secret`, either end. Raises ConnectionLost if the peer does not know it."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    try:
        sock.sendall(nonce)
        theirs = _receive_exactly(sock, _NONCE_BYTES)
        _refuse_echo(nonce, theirs)
        sock.sendall(_proof(secret, theirs))
        _check(secret, nonce, _receive_exactly(sock, _MAC_BYTES))
    except OSError as error:
        raise ConnectionLost(f"peer left during the handshake: {error}") from None


async def authenticate_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes, timeout_s: float = 5.0
) -> None:
    """Do the same as `authenticate` on asyncio streams, within `timeout_s`. Raises ConnectionLost."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    try:
        async with asyncio.timeout(timeout_s):
            writer.write(nonce)
            theirs = await reader.readexactly(_NONCE_BYTES)
            _refuse_echo(nonce, theirs)
            writer.write(_proof(secret, theirs))
            _check(secret, nonce, await reader.readexactly(_MAC_BYTES))
    except (asyncio.IncompleteReadError, TimeoutError, OSError) as error:
        raise ConnectionLost(f"peer left during the handshake: {error!r}") from None


def _proof(secret: bytes, nonce: bytes) -> bytes:
    return hmac.new(secret, nonce, hashlib.sha256).digest()


def _check(secret: bytes, nonce: bytes, proof: bytes) -> None:
    if not hmac.compare_digest(_proof(secret, nonce), proof):
        raise ConnectionLost("peer does not know the channel secret")


def _refuse_echo(ours: bytes, theirs: bytes) -> None:
    # Both proofs use one secret: a peer that echoes our nonce would have us compute its proof.
    if hmac.compare_digest(ours, theirs):
        raise ConnectionLost("peer echoed our nonce")


def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    view = memoryview(buffer)
    done = 0
    while done < size:
        try:
            count = sock.recv_into(view[done:])
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionLost(f"peer is gone while receiving: {error}") from None
        if count == 0:
            raise ConnectionLost("peer closed the connection")
        done += count
    return bytes(buffer)
