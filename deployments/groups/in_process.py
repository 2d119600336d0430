"""A TokenTransport to a group in the same process: for tests and for serving from one process."""

import asyncio
import contextlib

from cluster.submit_target import SubmitTarget
from core.errors import ErrorInfo, ReplicaFailed
from deployments.groups.transport import TokenStream
from deployments.token_channel.streams import OpenStreams
from engine.request import EngineLoad, GenerationRequest, StepEvents


class InProcessTransport:
    """A TokenTransport over a SubmitTarget of this process; streams are read on `loop` (default: the running one)."""

    def __init__(self, target: SubmitTarget, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._target = target
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._group_id = target.status().group_id
        self._streams = OpenStreams(target.cancel)
        self._sink = self._on_events  # one object: the engine batches events by sink
        self._is_open = True

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

    def _on_events(self, events: StepEvents) -> None:
        # On the engine thread. A closed loop has no readers left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._streams.deliver, events)
