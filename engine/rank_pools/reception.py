"""How processes get in: one listening socket for as long as it takes until each that was started has arrived."""

import selectors
import socket
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

from core.errors import RankDied, ReplicaFailed
from core.frames import ConnectionLost
from engine.rank_pools.failures import to_pool_error
from parallel.rank.channel import RankSocket, accept_rank
from parallel.rank.messages import Arrived, Pulse, RankError

_IDLE_S = 0.1
"""How often to ask whether a process has ended instead of arriving."""
_SEND_TIMEOUT_S = 30.0
"""A rank that has not read a whole frame for this long is treated as dead."""


class PulseConnection(NamedTuple):
    """A process's other connection; what it carries says parallel/rank/pulse.py."""

    sock: socket.socket
    needs_gil: bool


class Guest(NamedTuple):
    """A process that has arrived."""

    seat: int
    pid: int
    channel: RankSocket
    pulse: PulseConnection


class Reception:
    """Lets in the processes that know the secret; drops everybody else without harm.

    A context manager: connections not handed over by `admit` are closed at its end.
    """

    def __init__(self, host: str, max_seats: int, secret: bytes) -> None:
        """Listen on a free port of `host`. Raises ReplicaFailed if the host is not an address of this machine."""
        self._secret = secret
        self._expected: set[int] = set()
        self._arrived: dict[int, tuple[Arrived, RankSocket]] = {}
        self._pulses: dict[int, PulseConnection] = {}
        self._selector = selectors.DefaultSelector()
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family, backlog=4 * max_seats)
        except OSError as error:
            raise ReplicaFailed(f"ranks cannot be awaited at {host}: {error.strerror}; check leader_host") from None
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._unclaimed: set[RankSocket] = set()

    @property
    def port(self) -> int:
        """Where processes connect to."""
        return self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; close connections that were not handed over. Idempotent."""
        for sock in self._unclaimed:
            sock.close()
        self._selector.close()
        self._listener.close()

    def admit(
        self,
        seats: Iterable[int],
        deadline_s: float,
        describe_exit: Callable[[int], str | None],
        is_closing: Callable[[], bool],
    ) -> list[Guest]:
        """Return the processes of `seats`, connections handed over; blocks until time.monotonic() is `deadline_s`.

        Raises RankDied when one ends before it arrived, what one reports instead of arriving, ReplicaFailed naming
        those that are missing at the deadline.
        """
        self._expected = set(seats)
        while missing := sorted(self._expected - (self._arrived.keys() & self._pulses.keys())):
            if is_closing():
                raise RankDied("the ranks were closed while they joined")
            if time.monotonic() > deadline_s:
                raise ReplicaFailed(f"ranks {missing} did not join in time")
            if not self._admit_ready():
                self._look_for_dead(missing, describe_exit)
        return [self._hand_over(seat) for seat in sorted(self._expected)]

    def _hand_over(self, seat: int) -> Guest:
        arrived, channel = self._arrived[seat]
        self._unclaimed.discard(channel)
        return Guest(seat, arrived.pid, channel, self._pulses[seat])

    def _admit_ready(self) -> bool:
        """Handle what has happened within a moment; return whether anything has."""
        ready = self._selector.select(_IDLE_S)
        for key, _ in ready:
            if key.data is None:
                self._accept()
            else:
                self._listen_to(key.data)
        return bool(ready)

    def _accept(self) -> None:
        try:
            sock = accept_rank(self._listener, self._secret, _SEND_TIMEOUT_S)
        except ConnectionLost:
            return
        self._unclaimed.add(sock)
        self._selector.register(sock, selectors.EVENT_READ, sock)

    def _listen_to(self, sock: RankSocket) -> None:
        try:
            message = sock.receive()
        except ConnectionLost:
            self._drop(sock)
            for seat, (_, channel) in self._arrived.items():
                if channel is sock:
                    raise RankDied(f"rank {seat} died while others joined") from None
            return
        if isinstance(message, RankError):
            raise to_pool_error(message)
        if isinstance(message, Arrived) and message.seat in self._expected - self._arrived.keys():
            self._arrived[message.seat] = message, sock
        elif isinstance(message, Pulse) and message.seat in self._expected - self._pulses.keys():
            self._selector.unregister(sock)
            self._unclaimed.discard(sock)
            self._pulses[message.seat] = PulseConnection(sock.detach(), message.needs_gil)
        else:
            self._drop(sock)

    def _drop(self, sock: RankSocket) -> None:
        self._selector.unregister(sock)
        self._unclaimed.discard(sock)
        sock.close()

    def _look_for_dead(self, missing: list[int], describe_exit: Callable[[int], str | None]) -> None:
        for seat in missing:
            if how := describe_exit(seat):
                raise RankDied(f"rank {seat} ended before it joined: {how}")
