"""Streams as a bare socket sees them, with the time of each event: what a client library would hide."""

import json
import threading
import time
from typing import Any, NamedTuple

import httpx


class Ended(NamedTuple):
    """How a stream ended."""

    at_s: float
    events: list[Any]
    """Parsed JSON of each `data:` line, without `[DONE]`."""
    is_done: bool
    """Whether `[DONE]` came before the end of the body."""
    transport_error: str | None
    """What the connection broke with, if it did."""

    @property
    def text(self) -> str:
        """All text of the first choice."""
        parts = [event["choices"][0]["delta"].get("content") or "" for event in self.events if event.get("choices")]
        return "".join(parts)

    @property
    def error_code(self) -> str | None:
        """Code of the last event if it is an error."""
        last = self.events[-1] if self.events else {}
        return last["error"]["code"] if "error" in last else None


def story_body(model: str, max_tokens: int, content: str = "Tell me a very long story.") -> dict[str, Any]:
    """Return a streamed chat that goes on until `max_tokens`."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }


class RawStream:
    """One streamed chat completion, read by a thread of its own."""

    def __init__(
        self, url: str, model: str, max_tokens: int, headers: dict[str, str] | None = None, **fields: Any
    ) -> None:
        """`fields` are added to the body."""
        self.has_begun = threading.Event()
        self.ended: Ended | None = None
        self._url = f"{url}/v1/chat/completions"
        self._headers = headers
        self._body = story_body(model, max_tokens) | fields
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> Ended:
        """Return how it ended; fails the test if it has not by then."""
        self._thread.join(timeout_s)
        assert self.ended is not None, f"a stream is still open after {timeout_s:g} s"
        return self.ended

    def _read(self) -> None:
        events: list[Any] = []
        is_done, broke_with = False, None
        try:
            with httpx.stream("POST", self._url, json=self._body, headers=self._headers, timeout=120) as answer:
                if answer.status_code != httpx.codes.OK:
                    answer.read()
                    events.append(answer.json())
                    return
                for line in answer.iter_lines():
                    data = line.removeprefix("data: ")
                    is_done = is_done or data == "[DONE]"
                    if data and data != "[DONE]":
                        events.append(json.loads(data))
                        self.has_begun.set()
        except httpx.HTTPError as error:
            broke_with = f"{type(error).__name__}: {error}"
        finally:
            self.ended = Ended(time.monotonic(), events, is_done, broke_with)
            self.has_begun.set()
