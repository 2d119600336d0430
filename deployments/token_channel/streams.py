"""From events of a whole group to one stream for each request. Shared by every transport; lives on one event loop."""

import asyncio
from collections import deque
from collections.abc import Callable

from core.errors import ErrorInfo, InvalidRequest, Overloaded
from engine.request import StepEvents, TokenEvent

MAX_UNREAD_EVENTS = 8192
"""Events one stream may hold unread; a reader further behind loses its request. About 2 MB without logprobs."""


class EventStream:
    """The events of one accepted request: a TokenStream with one reader."""

    def __init__(self, request_id: str, leave: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._leave = leave
        self._unread: deque[TokenEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_over = False

    @property
    def num_unread(self) -> int:
        """Events that came and were not read."""
        return len(self._unread)

    def push(self, event: TokenEvent) -> None:
        """Append one event and wake the reader."""
        self._unread.append(event)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def __aenter__(self) -> "EventStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._is_over = True
        self._unread.clear()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._leave(self.request_id)

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> TokenEvent:
        while not self._unread:
            if self._is_over:
                raise StopAsyncIteration
            assert self._waiter is None, "a stream has one reader"
            # A bare future, renewed when needed, costs a third of an asyncio.Queue per token.
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._unread.popleft()
        self._is_over = event.is_terminal
        return event


class OpenStreams:
    """The streams a transport has open, by request id. An entry goes with its terminal event or with its reader."""

    def __init__(self, cancel: Callable[[str], None], max_unread_events: int = MAX_UNREAD_EVENTS) -> None:
        self._cancel = cancel
        self._max_unread_events = max_unread_events
        self._streams: dict[str, EventStream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, request_id: str) -> EventStream:
        """Return a new stream that takes the request's events. Raises InvalidRequest if the id is in use."""
        if request_id in self._streams:
            raise InvalidRequest(f"request id {request_id!r} is already open; use a new one", param="request_id")
        stream = self._streams[request_id] = EventStream(request_id, self.leave)
        return stream

    def leave(self, request_id: str) -> None:
        """Forget the stream; cancel the request unless it has ended."""
        if self._streams.pop(request_id, None) is not None:
            self._cancel(request_id)

    def discard(self, request_id: str) -> None:
        """Forget the stream of a request that was never accepted."""
        self._streams.pop(request_id, None)

    def deliver(self, events: StepEvents) -> None:
        """Hand each event to its stream; events of streams that were left are dropped."""
        streams = self._streams
        for event in events:
            stream = streams.get(event.request_id)
            if stream is None:
                continue
            if event.finish_reason is not None or event.error is not None:
                del streams[event.request_id]
            elif stream.num_unread >= self._max_unread_events:
                self.leave(event.request_id)
                event = _left_unread(stream)
            stream.push(event)

    def end_all(self, error: ErrorInfo) -> list[str]:
        """End every stream with `error`; return the request ids, which are not cancelled here."""
        streams, self._streams = self._streams, {}
        for request_id, stream in streams.items():
            stream.push(TokenEvent(request_id, [], error=error))
        return list(streams)


def _left_unread(stream: EventStream) -> TokenEvent:
    error = Overloaded(f"{stream.num_unread} events of this request were left unread; read the stream faster")
    return TokenEvent(stream.request_id, [], error=ErrorInfo.of(error))
