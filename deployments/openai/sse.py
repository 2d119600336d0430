"""Server-sent events on an ASGI connection. This is the path every streamed token takes: bytes are prepared once per
stream and only the text of a token is encoded when it comes."""

import json
import re
from collections.abc import Awaitable

import msgspec
from starlette.types import Send

DONE = b"data: [DONE]\n\n"

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
# Line ends to Python's str.splitlines, by which many clients cut a stream into lines; JSON does not escape them.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_ENCODER = msgspec.json.Encoder()


def json_text(text: str) -> bytes:
    """Return `text` as a JSON string that no line splitter cuts."""
    if not text.isascii() and _LINE_ENDS.search(text):
        return json.dumps(text).encode()
    return _ENCODER.encode(text)


def json_value(value: object) -> bytes:
    """Return any structure as JSON that no line splitter cuts."""
    encoded = _ENCODER.encode(value)
    if not encoded.isascii() and _LINE_ENDS.search(encoded.decode()):
        return json.dumps(json.loads(encoded)).encode()
    return encoded


class SseResponse:
    """Opens the response with the first event, so that whatever fails before it still gets a status of its own."""

    def __init__(self, send: Send, opening: bytes) -> None:
        self._send = send
        self._opening: bytes | None = opening

    def write(self, events: bytes) -> Awaitable[None]:
        """Send events when awaited; waits while the client does not keep up."""
        # No coroutine of its own around that of `send`, for every token comes through here.
        if self._opening is not None:
            return self._open_with(events)
        return self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes) -> None:
        """Send the last events and end the response."""
        if self._opening is not None:
            events = await self._open() + events
        await self._send({"type": "http.response.body", "body": events, "more_body": False})

    async def _open_with(self, events: bytes) -> None:
        await self.write(await self._open() + events)

    async def _open(self) -> bytes:
        opening, self._opening = self._opening or b"", None
        await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        return opening
