"""The live page of one gateway copy: its files, its feed, and the history behind it."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.clock import Clock
from deployments.groups.directory import GroupDirectory
from deployments.groups.unbroken import UnbrokenStreams
from deployments.http.caller import caller_of
from deployments.live.assets import asset_routes, load_assets
from deployments.live.config import LiveConfig
from deployments.live.feed import FeedAnswer, FeedQuery, Sees
from deployments.live.history import LiveHistory
from deployments.live.latencies import BucketScale, RequestLatencies
from deployments.live.overview import Overview
from deployments.live.viewers import Viewers

FEED_PATH = "/live/feed"

_TICK_AFTER_S = 0.02
"""How far into a second the one before it is kept."""


class WatchedChoice(Protocol):
    """What counts its tokens' times once it is told where."""

    latencies: RequestLatencies | None


class LivePage:
    """Lives on one event loop; its history begins with `start`."""

    def __init__(
        self,
        config: LiveConfig,
        directory: GroupDirectory,
        streams: UnbrokenStreams,
        expected: Collection[str],
        clock: Clock,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """Reads the page's files, so it blocks. `expected`: models that are shown even before they have a group."""
        self.copy = uuid.uuid4().hex[:8]
        self._streams = streams
        self._wall_s = wall_s
        self._overview = Overview(directory, streams, expected)
        self._history = LiveHistory(self._overview.connected_groups, wall_s)
        self._viewers = Viewers(config.max_viewers, clock)
        self._assets = load_assets()
        self._ticking: asyncio.Task[None] | None = None

    @property
    def open_paths(self) -> frozenset[str]:
        """Paths that are served without a key."""
        return frozenset(self._assets)

    def routes(self) -> list[Route]:
        """Return the routes of the page."""
        return [*asset_routes(self._assets), Route(FEED_PATH, self._feed, methods=["GET"])]

    def watch(self, model: str, choices: Iterable[WatchedChoice], received_s: float) -> None:
        """Have the times of a request's tokens counted from now on; it was received then, by `time.monotonic`."""
        latencies = self._history.latencies(model).of_request(received_s)
        for choice in choices:
            choice.latencies = latencies

    def start(self) -> None:
        """Begin to keep history on the running loop. Idempotent."""
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().create_task(self._tick_forever())

    async def close(self) -> None:
        """Keep no more. Idempotent."""
        ticking, self._ticking = self._ticking, None
        if ticking is not None:
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking

    def tick(self) -> None:
        """Keep the second that has just ended; `start` has it called once a second."""
        self._history.tick()

    def answer(self, query: FeedQuery, sees: Sees) -> FeedAnswer:
        """Return what a page is told. Raises InvalidRequest, RateLimited, Overloaded."""
        self._viewers.admit(query.viewer)
        return FeedAnswer(
            copy=self.copy,
            now_s=round(self._wall_s(), 3),
            num_open=self._streams.num_open,
            num_held=self._streams.num_held,
            scale=BucketScale(),
            models=self._overview.models(sees),
            groups=self._overview.groups(self._history, sees),
            seconds=self._history.since(query.seen.get(self.copy, 0), sees),
        )

    async def _feed(self, request: Request) -> Response:
        answer = self.answer(FeedQuery.parse(request.query_params), caller_of(request.scope).sees)
        body = msgspec.json.encode(answer)
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(1 + _TICK_AFTER_S - self._wall_s() % 1)
            self.tick()
