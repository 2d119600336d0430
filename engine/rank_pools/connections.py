"""The open connections of a rank pool: send to all, receive from whoever speaks first."""

import selectors
import socket
import threading
from typing import NamedTuple

from core.frames import ConnectionLost
from parallel.rank.channel import RankSocket
from parallel.rank.messages import FromRank, ToRank

_ALARM = object()
"""Marks the selector's entry that `wake` makes readable."""


class RankLost(Exception):
    """A message could not be sent to `rank`."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"rank {rank} cannot be reached")
        self.rank = rank


class Arrival(NamedTuple):
    """What came from one rank."""

    rank: int
    message: FromRank | None
    """None: the connection broke, which is the last thing that arrives from a rank."""


class RankConnections:
    """One socket a rank. Any thread may send; `receive` from several threads takes turns."""

    def __init__(self) -> None:
        self._sockets: dict[int, RankSocket] = {}
        self._selector = selectors.DefaultSelector()
        # Readable from `wake` on: a rank that has left is in the selector no more, and could wake nobody.
        self._alarm, self._alarm_end = socket.socketpair()
        self._selector.register(self._alarm_end, selectors.EVENT_READ, _ALARM)
        self._send_lock = threading.Lock()
        self._receive_lock = threading.Lock()

    def add(self, rank: int, sock: RankSocket) -> None:
        """Take over a connection."""
        self._sockets[rank] = sock
        self._selector.register(sock, selectors.EVENT_READ, rank)

    @property
    def num_open(self) -> int:
        """Connections that are not known to be broken."""
        return max(0, len(self._selector.get_map() or ()) - 1)

    def send(self, rank: int, message: ToRank) -> None:
        """Send to one rank. Raises RankLost."""
        with self._send_lock:
            self._send(rank, self._sockets[rank].encode(message))

    def broadcast(self, message: ToRank) -> None:
        """Send to every rank, encoded once. Raises RankLost at the first that cannot be reached."""
        with self._send_lock:
            encoded: bytes | None = None
            for rank, sock in self._sockets.items():
                encoded = encoded or sock.encode(message)
                self._send(rank, encoded)

    def receive(self, timeout_s: float) -> list[Arrival]:
        """Return one message of each rank that has any, empty after `timeout_s`, `wake` or `close`; blocks."""
        if not self._receive_lock.acquire(timeout=max(0.0, timeout_s)):
            return []
        try:
            if self._selector.get_map() is None:
                return []
            ready = [key for key, _ in self._selector.select(max(0.0, timeout_s))]
            return [self._receive(key) for key in ready if key.data is not _ALARM]
        finally:
            self._receive_lock.release()

    def wake(self) -> None:
        """Break every connection; a blocked `receive` returns, and every later one at once."""
        self._alarm.close()
        for sock in self._sockets.values():
            sock.wake()

    def close(self) -> None:
        """Close every connection; call `wake` first."""
        with self._receive_lock:
            self._selector.close()
            self._alarm_end.close()
            for sock in self._sockets.values():
                sock.close()

    def _send(self, rank: int, encoded: bytes) -> None:
        try:
            self._sockets[rank].send_encoded(encoded)
        except ConnectionLost:
            raise RankLost(rank) from None

    def _receive(self, key: selectors.SelectorKey) -> Arrival:
        rank: int = key.data
        try:
            return Arrival(rank, self._sockets[rank].receive())
        except ConnectionLost:
            self._selector.unregister(key.fileobj)
            return Arrival(rank, None)
