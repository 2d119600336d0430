"""Tells every gateway what a replica group says about itself: at once when it changes, and every two seconds."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from cluster.status import GroupStatus

logger = logging.getLogger(__name__)

_MIN_INTERVAL_S = 0.25
_MAX_INTERVAL_S = 2.0

Broadcast = Callable[[bytes], Awaitable[bool]]
"""Delivers one announcement to every gateway there is; returns whether any heard it. Gateways come and go."""


class Announcer:
    """Lives on one event loop. While a group loads it changes many times a second; gateways hear of it four times."""

    def __init__(
        self,
        status: Callable[[], GroupStatus],
        broadcast: Broadcast,
        *,
        min_interval_s: float = _MIN_INTERVAL_S,
        max_interval_s: float = _MAX_INTERVAL_S,
    ) -> None:
        self._status = status
        self._broadcast = broadcast
        self._min_interval_s = min_interval_s
        self._max_interval_s = max_interval_s
        self._changed = asyncio.Event()
        self._is_heard = True

    def wake(self) -> None:
        """Have the change that just happened announced; call on the loop."""
        self._changed.set()

    async def run(self) -> None:
        """Announce until cancelled."""
        while True:
            self._changed.clear()
            await self.announce()
            await asyncio.sleep(self._min_interval_s)
            try:
                async with asyncio.timeout(self._max_interval_s - self._min_interval_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def announce(self) -> None:
        """Send one announcement; a gateway that is not there (yet) is not an error."""
        is_heard = await self._broadcast(msgspec.msgpack.encode(self._status()))
        if is_heard != self._is_heard:
            logger.info("gateways hear announcements" if is_heard else "no gateway hears announcements")
        self._is_heard = is_heard
