"""The open connections of a rank pool: send to all, receive from whoever speaks first."""

import contextlib
import select
import socket
import threading
from typing import NamedTuple

from core.frames import ConnectionLost
from parallel.rank.channel import RankSocket
from parallel.rank.messages import FromRank, ToRank


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
        # Of connections that are not known to be broken. The bare system call, not `selectors`: it is waited in once a
        # step, and what runs between an answer and the next plan runs on cold caches.
        self._rank_of: dict[int, int] = {}
        self._poll = select.poll()
        # Readable from `wake` on: a rank that has left is polled no more, and could wake nobody.
        self._alarm, self._alarm_end = socket.socketpair()
        self._poll.register(self._alarm_end, select.POLLIN)
        self._is_closed = False
        self._send_lock = threading.Lock()
        self._receive_lock = threading.Lock()

    def add(self, rank: int, sock: RankSocket) -> None:
        """Take over a connection."""
        self._sockets[rank] = sock
        self._rank_of[sock.fileno()] = rank
        self._poll.register(sock, select.POLLIN)

    def remove(self, rank: int) -> None:
        """Close a rank's connection, if it has one."""
        sock = self._sockets.pop(rank, None)
        if sock is not None:
            if self._rank_of.pop(sock.fileno(), None) is not None:
                self._poll.unregister(sock)
            sock.close()

    @property
    def open_ranks(self) -> list[int]:
        """Ranks whose connections are not known to be broken."""
        return sorted(self._rank_of.values())

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
        """Return one message of each rank that has any; empty after `timeout_s`, or when interrupted. Blocks."""
        if not self._receive_lock.acquire(timeout=max(0.0, timeout_s)):
            return []
        try:
            if self._is_closed:
                return []
            ready = self._poll.poll(1e3 * max(0.0, timeout_s))
            arrivals = [self._receive(fileno) for fileno, _ in ready if fileno in self._rank_of]
            if len(arrivals) < len(ready):
                self._take_alarm()
            return arrivals
        finally:
            self._receive_lock.release()

    def interrupt(self) -> None:
        """Have a blocked `receive`, or the next one, return; any thread."""
        # OSError: it was closed meanwhile, or many interrupts wait already.
        with contextlib.suppress(OSError):
            self._alarm.send(b"!", socket.MSG_DONTWAIT)

    def wake(self) -> None:
        """Break every connection; a blocked `receive` returns, and every later one at once."""
        self._alarm.close()
        for sock in list(self._sockets.values()):
            sock.wake()

    def close(self) -> None:
        """Close every connection; call `wake` first."""
        with self._receive_lock:
            self._is_closed = True
            self._rank_of.clear()
            self._alarm_end.close()
            for sock in self._sockets.values():
                sock.close()

    def _take_alarm(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._alarm_end.recv(4096, socket.MSG_DONTWAIT)

    def _send(self, rank: int, encoded: bytes) -> None:
        try:
            self._sockets[rank].send_encoded(encoded)
        except ConnectionLost:
            raise RankLost(rank) from None

    def _receive(self, fileno: int) -> Arrival:
        rank = self._rank_of[fileno]
        try:
            return Arrival(rank, self._sockets[rank].receive())
        except ConnectionLost:
            self._poll.unregister(fileno)
            del self._rank_of[fileno]
            return Arrival(rank, None)
