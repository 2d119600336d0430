"""How ranks get in: one listening socket for as long as it takes until each has joined."""

import selectors
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from core.errors import RankDied, ReplicaFailed
from core.frames import ConnectionLost
from engine.rank_pools.failures import to_pool_error
from parallel.rank.channel import RankSocket, accept_rank
from parallel.rank.messages import Joined, RankError

_IDLE_S = 0.2
"""How often to ask whether a process has ended instead of joining."""
_SEND_TIMEOUT_S = 30.0
"""A rank that has not read a whole frame for this long is treated as dead."""


class Guest(NamedTuple):
    """A rank that has joined."""

    joined: Joined
    sock: RankSocket


class Reception:
    """Lets in the ranks of one generation that know the secret; drops everybody else without harm.

    A context manager: connections not handed over by `admit_all` are closed at its end.
    """

    def __init__(self, host: str, world_size: int, generation: int, secret: bytes) -> None:
        """Listen on a free port of `host`. Raises ReplicaFailed if the host is not an address of this machine."""
        self._world_size = world_size
        self._generation = generation
        self._secret = secret
        self._guests: dict[int, Guest] = {}
        self._selector = selectors.DefaultSelector()
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family, backlog=2 * world_size)
        except OSError as error:
            raise ReplicaFailed(f"ranks cannot be awaited at {host}: {error.strerror}; check leader_host") from None
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._unclaimed: set[RankSocket] = set()

    @property
    def port(self) -> int:
        """Where ranks connect to."""
        return self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in self._unclaimed:
            sock.close()
        self._selector.close()
        self._listener.close()

    def admit_all(
        self, deadline_s: float, describe_exit: Callable[[int], str | None], is_closing: Callable[[], bool]
    ) -> list[Guest]:
        """Return every rank in rank order, connections handed over; blocks until time.monotonic() is `deadline_s`.

        Raises RankDied when a process ends before it joined, what a rank reports instead of joining, ReplicaFailed
        naming the ranks that are missing at the deadline.
        """
        while missing := [rank for rank in range(self._world_size) if rank not in self._guests]:
            if is_closing():
                raise RankDied("the ranks were closed while they joined")
            if time.monotonic() > deadline_s:
                raise ReplicaFailed(f"ranks {missing} did not join in time")
            if not self._admit_ready():
                self._look_for_dead(missing, describe_exit)
        for guest in self._guests.values():
            self._unclaimed.discard(guest.sock)
        return [self._guests[rank] for rank in range(self._world_size)]

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
            for rank, guest in self._guests.items():
                if guest.sock is sock:
                    raise RankDied(f"rank {rank} died while others joined") from None
            return
        if isinstance(message, RankError):
            raise to_pool_error(message)
        if isinstance(message, Joined) and self._is_expected(message):
            self._guests[message.rank] = Guest(message, sock)
        else:
            self._drop(sock)

    def _is_expected(self, joined: Joined) -> bool:
        is_ours = joined.generation == self._generation and 0 <= joined.rank < self._world_size
        return is_ours and joined.rank not in self._guests

    def _drop(self, sock: RankSocket) -> None:
        self._selector.unregister(sock)
        self._unclaimed.discard(sock)
        sock.close()

    def _look_for_dead(self, missing: list[int], describe_exit: Callable[[int], str | None]) -> None:
        for rank in missing:
            if how := describe_exit(rank):
                raise RankDied(f"rank {rank} ended before it joined: {how}")
