"""Requests that wait at the gateway while no group can take them: a bounded queue, woken when one can.

Two uses: a request for a model that was scaled to zero, and a stream whose group died while no other lives. Each has a
queue of its own, so that new requests cannot take the places of streams that have begun:

    queue = HoldingQueue(max_held=256, timeout_s=30)
    ...
    await queue.hold(lambda: bool(directory.open_groups(model)))   # raises NotReady: full, or waited in vain
    ...
    queue.wake()                                                   # whenever a group was announced or connected

Whoever is woken must ask the router like anybody else: that a group is open does not mean that it accepts.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from core.errors import NotReady

RETRY_AFTER_FULL_S = 5.0
"""What is told to a caller for whom there is no place: a group that becomes ready empties the whole queue at once."""


class HoldingQueue:
    """Holds callers until a condition is true, in order of arrival. Lives on one event loop."""

    def __init__(self, max_held: int, timeout_s: float) -> None:
        """`timeout_s`: longest wait of one caller, unless it asks for less."""
        self._max_held = max_held
        self._timeout_s = timeout_s
        self._held: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._held)

    async def hold(self, can_go: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Return once `can_go()`, asked now and after every `wake`.

        Raises NotReady at once if the queue is full, and when the time is up. Leaves no trace when cancelled.
        """
        limit_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        if can_go():
            return
        if len(self._held) >= self._max_held:
            raise NotReady(
                f"no replica group can take work, and {len(self._held)} requests wait for one, which is the limit; "
                "try again later",
                retry_after_s=RETRY_AFTER_FULL_S,
            )
        try:
            async with asyncio.timeout(limit_s):
                while not can_go():
                    await self._sleep()
        except TimeoutError:
            raise NotReady(
                f"no replica group became ready within {limit_s:g} s; try again later",
                retry_after_s=RETRY_AFTER_FULL_S,
            ) from None

    def wake(self) -> None:
        """Have every held caller ask again, the one that came first before the others."""
        for sleeper in self._held:
            if not sleeper.done():
                sleeper.set_result(None)

    async def _sleep(self) -> None:
        # A caller that asks in vain sleeps anew. All are woken together, so their order stays.
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append(sleeper)
        try:
            await sleeper
        finally:
            self._held.remove(sleeper)
