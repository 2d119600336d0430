"""Models that may have no replica group at all: a request for one has Serve start the first, and waits for it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pydantic import Field, PositiveInt

from core.config import Config
from core.errors import EaglerayError, NotReady
from deployments.groups.holding import HoldingQueue

logger = logging.getLogger(__name__)

StartApplication = Callable[[str], Awaitable[None]]
"""Returns when an application has a replica. Raises EaglerayError."""


async def cannot_start(application: str) -> None:
    """Raise NotReady: where no Serve is, nobody starts replicas."""
    raise NotReady(f"application {application} cannot be started from here", retry_after_s=None)


class SleepConfig(Config):
    """Which models may be scaled to zero, and how long their first requests wait."""

    applications: dict[str, str] = {}
    """By public model name: the application whose first replica a request starts. Set `min_replicas: 0` there."""
    wait_s: float = Field(default=60.0, gt=0, le=3600)
    """How long a request waits for the first group; longer than a group takes to start."""
    max_held_requests: PositiveInt = 256
    """Most requests that wait so at a time; more are refused."""


class SleepingModels:
    """Wakes models and holds their requests meanwhile. Lives on one event loop."""

    def __init__(self, config: SleepConfig, is_awake: Callable[[str], bool], start: StartApplication) -> None:
        """`is_awake(model)`: whether it can be asked."""
        self._applications = config.applications
        self._is_awake = is_awake
        self._start = start
        self._held = HoldingQueue(config.max_held_requests, config.wait_s)
        self._starting: dict[str, asyncio.Task[None]] = {}

    async def wake(self, model: str) -> None:
        """Return when the model can be asked; at once for one that never sleeps. Raises NotReady: full, or too slow."""
        if model in self._applications and not self._is_awake(model):
            self._start_first_group(model)
            await self._held.hold(lambda: self._is_awake(model))

    def note_change(self) -> None:
        """Let go on whom a change among the groups has let in; call after each."""
        self._held.wake()

    async def close(self) -> None:
        """Wait for no start any longer."""
        tasks = list(self._starting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_first_group(self, model: str) -> None:
        if model not in self._starting:
            logger.info("model is woken", extra={"model": model})
            task = self._starting[model] = asyncio.create_task(self._call(model))
            task.add_done_callback(lambda _: self._starting.pop(model))

    async def _call(self, model: str) -> None:
        try:
            await self._start(self._applications[model])
        except EaglerayError as error:
            # Those that are held are told that they waited in vain; the next request tries again.
            logger.warning("model not woken", extra={"model": model, "error": error.message})
