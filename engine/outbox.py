"""What requests are to be told, gathered on the engine thread and handed over in one call a consumer."""

import logging
from collections.abc import Sequence

from core.errors import ErrorInfo
from engine.decode_batch import Addressee
from engine.live_request import LiveRequest
from engine.request import EventSink, FinishReason, StepEvents, TokenEvent
from engine.request_timings import RequestTimings
from parallel.plan import RowToken

logger = logging.getLogger(__name__)


class Outbox:
    """Events of one request are delivered in the order they were put."""

    def __init__(self) -> None:
        self._pending: dict[EventSink, StepEvents] = {}
        self._ended: list[LiveRequest] = []

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to deliver."""
        return not self._pending

    def put_tokens(self, addressees: Sequence[Addressee], token_ids: list[int]) -> None:
        """Add a step's plain tokens; what was put before must have been delivered."""
        assert not self._pending, "tokens precede events, so a step's tokens are the first to be put"
        for addressee in addressees:
            self._pending[addressee.sink] = StepEvents(addressee.request_ids, addressee.take(token_ids), [])

    def put_token(
        self,
        live: LiveRequest,
        token: RowToken,
        finish_reason: FinishReason | None,
        timings: RequestTimings | None = None,
    ) -> None:
        """Add a token that deserves an event: a request's first or last, or one with logprobs."""
        logprobs = None if token.logprobs is None else [token.logprobs]
        num_cached = live.take_num_cached_tokens()
        event = TokenEvent(
            live.request_id, [token.token_id], finish_reason, None, logprobs, num_cached, timings=timings
        )
        self._put(live, event)

    def put_end(
        self,
        live: LiveRequest,
        finish_reason: FinishReason | None = None,
        error: ErrorInfo | None = None,
        stop_token_id: int | None = None,
        timings: RequestTimings | None = None,
    ) -> None:
        """Add a terminal event without a token."""
        num_cached = live.take_num_cached_tokens()
        self._put(live, TokenEvent(live.request_id, [], finish_reason, error, None, num_cached, stop_token_id, timings))

    def take_ended(self) -> list[LiveRequest]:
        """Return the requests whose terminal event was put since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def deliver(self) -> list[EventSink]:
        """Empty the outbox, one call a consumer; return the consumers that raised."""
        pending, self._pending = self._pending, {}
        failed: list[EventSink] = []
        for sink, events in pending.items():
            try:
                sink(events)
            except Exception:
                logger.exception("event sink failed")
                failed.append(sink)
        return failed

    def discard(self, sink: EventSink) -> None:
        """Throw away what one consumer would get."""
        self._pending.pop(sink, None)

    def _put(self, live: LiveRequest, event: TokenEvent) -> None:
        events = self._pending.get(live.sink)
        if events is None:
            events = self._pending[live.sink] = StepEvents([], [], [])
        events.events.append(event)
        if live.is_ended:
            self._ended.append(live)
