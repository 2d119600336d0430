"""Server-sent events on an ASGI connection. This is the path every streamed token takes: bytes are prepared once per
stream and only the text of a token is encoded when it comes."""

import asyncio
import json
import re
from typing import NoReturn

import msgspec
from starlette.types import Send

from deployments.http.errors import SlowClient

DONE = b"data: [DONE]\n\n"

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
# Line ends to Python's str.splitlines, by which many clients cut a stream into lines; JSON does not escape them.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_LOOKS = 8
"""How often a stream is looked at before it is found stuck; the answer is late by no more than one part of so many."""
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
        self._num_begun = 0
        self._num_sent = 0

    async def write(self, events: bytes) -> None:
        """Send events; waits while the client does not keep up."""
        if self._opening is not None:
            events = await self._open() + events
        self._num_begun += 1
        await self._send({"type": "http.response.body", "body": events, "more_body": True})
        self._num_sent += 1

    async def end(self, events: bytes) -> None:
        """Send the last events and end the response."""
        if self._opening is not None:
            events = await self._open() + events
        self._num_begun += 1
        await self._send({"type": "http.response.body", "body": events, "more_body": False})
        self._num_sent += 1

    async def watch_reader(self, patience_s: float) -> NoReturn:
        """Raise SlowClient once the client has taken nothing for `patience_s` though there was something to take.

        Two counters a write and a look now and then, for a timer around every write would cost every token.
        """
        num_waits = 0
        while True:
            num_sent = self._num_sent
            await asyncio.sleep(patience_s / _LOOKS)
            is_stuck = self._num_begun > self._num_sent == num_sent
            num_waits = num_waits + 1 if is_stuck else 0
            if num_waits >= _LOOKS:
                raise SlowClient(f"the client has read nothing of its stream for {patience_s:g} s; read it faster")

    async def _open(self) -> bytes:
        opening, self._opening = self._opening or b"", None
        await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        return opening
