"""A process that is started before anybody needs it."""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from core.errors import EaglerayError, ReplicaFailed
from core.frames import ConnectionLost
from engine.rank_pools.launcher import RankLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.reception import Guest, Reception
from parallel.rank.channel import RankSocket
from parallel.rank.messages import Enlist, Joined, Load, Loaded, RankError, RankProgress, RankSpec

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer", Joined, Loaded)

_ROOM_FACTOR = 1.25
"""Times what a loaded rank takes that must be free before a spare one loads too."""

Prepare = Callable[[RankSocket], None]
"""Does with a spare process what can be done before it is a rank; blocks. Raises ConnectionLost."""


class Spare:
    """Starts one process in a thread of its own, so that serving does not wait for it."""

    def __init__(
        self,
        launcher: RankLauncher,
        seat: int,
        spec_of: Callable[[int, int, bytes], RankSpec],
        options: PoolOptions,
        prepare: Prepare,
    ) -> None:
        """`spec_of` gives what the process must know from its seat, the port it is awaited at, and the secret."""
        self.seat = seat
        self._launcher = launcher
        self._spec_of = spec_of
        self._options = options
        self._prepare = prepare
        self._guest: Guest | None = None
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spare", daemon=True)
        self._thread.start()

    def take(self, deadline_s: float) -> Guest | None:
        """Return the process, None if it failed; blocks while it is being started, for it is ahead of any other."""
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        # It has nothing to say: what there is to read is its end.
        if self._guest is None or self._guest.channel.has_message():
            self.close()
            return None
        return self._guest

    def abandon(self) -> None:
        """Await it no more; any thread."""
        self._is_closed.set()

    def close(self) -> None:
        """Give it up and kill its process. Idempotent."""
        self._is_closed.set()
        # Killed first, because its thread may be waiting for an answer; and again, if it was started in between.
        self._launcher.end(self.seat)
        self._thread.join()
        self._launcher.end(self.seat)
        if self._guest is not None:
            self._guest.channel.close()
            self._guest.pulse.sock.close()

    def _run(self) -> None:
        secret = secrets.token_bytes(32)
        deadline_s = time.monotonic() + self._options.join_timeout_s
        try:
            with Reception(self._options.leader_host, 1, secret) as reception:
                self._launcher.launch([self._spec_of(self.seat, reception.port, secret)])
                (guest,) = reception.admit(
                    [self.seat], deadline_s, self._launcher.describe_exit, self._is_closed.is_set
                )
            self._prepare(guest.channel)
        except (EaglerayError, OSError) as error:
            if not self._is_closed.is_set():
                logger.warning("no spare rank", extra={"reason": str(error)})
            return
        self._guest = guest
        logger.info("spare rank is ready", extra={"seat": self.seat, "rank_pid": guest.pid})


def preload(load: Load, like: Loaded, generation: int) -> Prepare:
    """Return what has a spare hold the weights of a model of one rank, if that much memory is free.

    It is enlisted as the rank of a group of its own; enlisted again, it has them.
    """

    def prepare(channel: RankSocket) -> None:
        channel.send(Enlist(0, generation))
        joined = _hear(channel, Joined)
        needed_bytes = int(_ROOM_FACTOR * (like.weight_bytes + like.kv_bytes))
        if joined.free_memory_bytes < needed_bytes:
            logger.warning(
                "the spare rank loads no weights for lack of memory",
                extra={"free_bytes": joined.free_memory_bytes, "needed_bytes": needed_bytes},
            )
            return
        channel.send(load)
        _hear(channel, Loaded)

    return prepare


def imports_only(channel: RankSocket) -> None:
    """Do nothing more: whose part of the weights it will hold is not known before a rank dies."""


def _hear(channel: RankSocket, kind: type[Answer]) -> Answer:
    while isinstance(message := channel.receive(), RankProgress):
        pass
    if isinstance(message, RankError):
        raise ReplicaFailed(f"the spare rank failed: {message.error.message}")
    if not isinstance(message, kind):
        raise ConnectionLost(f"a spare rank sent {type(message).__name__} out of turn")
    return message
