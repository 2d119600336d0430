"""The connection to one group: opened when wanted, reopened with growing pauses, replaced when the address changes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cluster.status import ChannelAddress
from core.clock import Clock
from core.errors import EaglerayError
from deployments.groups.transport import GroupListener, TokenTransport

logger = logging.getLogger(__name__)

Connect = Callable[[ChannelAddress, str, GroupListener], Awaitable[TokenTransport]]
"""Opens a transport: (address, group_id, listener). Raises ReplicaFailed."""

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


class GroupLink:
    """At most one transport and one attempt to open one. Lives on one event loop and acts only when called."""

    def __init__(self, group_id: str, connect: Connect, listener: GroupListener, clock: Clock) -> None:
        self._group_id = group_id
        self._connect = connect
        self._listener = listener
        self._clock = clock
        self._is_wanted = False
        self._address: ChannelAddress | None = None
        self._transport: TokenTransport | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._num_failures = 0
        self._next_attempt_s = clock.now_s()

    @property
    def transport(self) -> TokenTransport | None:
        """The open transport, if there is one."""
        transport = self._transport
        return transport if transport is not None and transport.is_open else None

    def want(self, address: ChannelAddress | None) -> None:
        """Be connected to `address` from now on. None keeps what is open and opens nothing new."""
        self._is_wanted = address is not None
        if address is not None and address != self._address:
            self._leave()
            self._address = address
            self._num_failures = 0
            self._next_attempt_s = self._clock.now_s()
        self.tend()

    def tend(self) -> None:
        """Start an attempt if a connection is wanted, missing and due."""
        is_due = self._clock.now_s() >= self._next_attempt_s
        if self._is_wanted and self.transport is None and self._attempt is None and is_due:
            assert self._address is not None
            self._attempt = asyncio.get_running_loop().create_task(self._open(self._address))

    def close(self) -> None:
        """Begin to close the transport and give up any attempt. Idempotent."""
        self._is_wanted = False
        self._leave()

    async def wait_closed(self) -> None:
        """Return when everything that was left is gone."""
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _open(self, address: ChannelAddress) -> None:
        try:
            transport = await self._connect(address, self._group_id, self._listener)
        except EaglerayError as error:
            self._note_failure(error)
        else:
            self._transport = transport
            self._num_failures = 0
            self._next_attempt_s = self._clock.now_s() + _FIRST_PAUSE_S
            logger.info("group connected", extra={"group_id": self._group_id})
        finally:
            # `_leave` has taken a cancelled attempt's place away already, and may have given it to another.
            if self._attempt is asyncio.current_task():
                self._attempt = None

    def _note_failure(self, error: EaglerayError) -> None:
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._num_failures, 10))
        self._num_failures += 1
        self._next_attempt_s = self._clock.now_s() + pause_s
        if self._num_failures == 1:
            logger.warning("group cannot be reached", extra={"group_id": self._group_id, "reason": error.message})

    def _leave(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
            self._await_later(self._attempt)
            self._attempt = None
        if self._transport is not None:
            self._await_later(asyncio.get_running_loop().create_task(self._transport.close()))
            self._transport = None

    def _await_later(self, task: asyncio.Task[None]) -> None:
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
