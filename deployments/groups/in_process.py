"""A TokenTransport to a group in the same process: for tests and for serving from one process."""

import asyncio
import contextlib
from collections.abc import Callable

from cluster.submit_target import SubmitTarget
from core.errors import ErrorInfo, ReplicaFailed
from deployments.groups.transport import NOBODY, GroupListener, TokenStream
from deployments.token_channel.streams import OpenStreams
from engine.prefix_feed import PrefixFeed, PrefixNews
from engine.request import EngineLoad, GenerationRequest, StepEvents

REPORT_PERIOD_S = 0.1


class InProcessTransport:
    """A TokenTransport over a SubmitTarget of this process; streams are read on `loop` (default: the running one).

    A listener hears of load and prefixes every 100 ms; there is no other gateway whose placements it could hear of.
    """

    def __init__(
        self,
        target: SubmitTarget,
        loop: asyncio.AbstractEventLoop | None = None,
        listener: GroupListener = NOBODY,
        prefix_feed: Callable[[], PrefixFeed | None] = lambda: None,
    ) -> None:
        self._target = target
        self._listener = listener
        self._find_feed = prefix_feed
        self._needs_snapshot = True
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._group_id = target.status().group_id
        self._streams = OpenStreams(target.cancel)
        self._sink = self._on_events  # one object: the engine batches events by sink
        self._is_open = True
        if listener is not NOBODY:
            self._loop.call_soon_threadsafe(self._report)

    @property
    def group_id(self) -> str:
        """The group's id."""
        return self._group_id

    @property
    def is_open(self) -> bool:
        """Whether submit may succeed."""
        return self._is_open

    @property
    def load(self) -> EngineLoad | None:
        """The group's load now, not as of a report."""
        return self._target.load()

    async def submit(self, request: GenerationRequest) -> TokenStream:
        """Return the stream once the group accepted. Raises what the group refused with."""
        if not self._is_open:
            raise ReplicaFailed(f"the transport to replica group {self._group_id} is closed")
        stream = self._streams.open(request.request_id)
        try:
            self._target.submit(request, self._sink)
        except BaseException:
            self._streams.discard(request.request_id)
            raise
        return stream

    async def close(self) -> None:
        """Cancel every open request; their streams end in ReplicaFailed. Idempotent."""
        self._is_open = False
        error = ReplicaFailed(f"the transport to replica group {self._group_id} was closed")
        for request_id in self._streams.end_all(ErrorInfo.of(error)):
            self._target.cancel(request_id)

    def _report(self) -> None:
        if not self._is_open:
            return
        load, news = self._target.load(), self._news()
        if load is not None:
            self._listener.on_load(load)
        if news is not None:
            self._needs_snapshot = not self._listener.on_prefixes(news)
        self._loop.call_later(REPORT_PERIOD_S, self._report)

    def _news(self) -> PrefixNews | None:
        feed = self._find_feed()
        if feed is None:
            return None
        news = feed.take_news()
        return feed.snapshot() if self._needs_snapshot else news

    def _on_events(self, events: StepEvents) -> None:
        # On the engine thread. A closed loop has no readers left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._streams.deliver, events)
