"""The ingress boundary: the one place where an exception becomes an HTTP answer, and where access is logged.

Every response carries `x-request-id`: the caller's, if it is short and harmless, otherwise a new one. It is only
echoed and logged; nothing inside is keyed by it.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import EaglerayError
from core.logs import log_context
from deployments.http.auth import OPEN_PATHS
from deployments.http.caller import caller_of
from deployments.http.errors import SlowClient
from deployments.http.quota import RawHeaders
from deployments.openai.errors import error_event, error_response

logger = logging.getLogger(__name__)

NoteAnswer = Callable[[str, int, str | None], None]
"""Takes path, status and what ended the exchange: None, an error's code, or CLIENT_LEFT."""

_HARMLESS_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_POLLED_PATHS = OPEN_PATHS | {"/metrics", "/live/feed"}
"""Asked every few seconds for ever; their lines would bury the others."""
CLIENT_LEFT = "client_left"
"""Stands where an error's code does."""
_CLIENT_LEFT_STATUS = 499
"""Nginx's number for it; logged, never sent."""
_NO_WEBSOCKETS = 1008
"""Policy violation."""
_CLOSING_STATUSES = frozenset({408, 413, 431})
"""Answers to requests that may still be under way: what is left of them must not be taken for the next request."""


class IngressBoundary:
    """Wraps an ASGI app whose handlers may raise anything at any moment."""

    def __init__(self, app: ASGIApp, note_answer: NoteAnswer = lambda path, status, error_code: None) -> None:
        """`note_answer` hears of every exchange when it is over."""
        self._app = app
        self._note_answer = note_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; raises nothing but cancellation."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _NO_WEBSOCKETS})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        with log_context(request_id=request_id):
            await _Exchange(scope, receive, send, request_id).run(self._app, self._note_answer)


class _Exchange:
    """One request and what has been sent of its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._status: int | None = None
        self._is_event_stream = False
        self._is_complete = False

    async def run(self, app: ASGIApp, note_answer: NoteAnswer) -> None:
        started_s = time.perf_counter()
        error_code: str | None = None
        try:
            error_code = await self._run(app)
        except asyncio.CancelledError:
            error_code = CLIENT_LEFT
            raise
        finally:
            status = self._status or _CLIENT_LEFT_STATUS
            note_answer(self._scope["path"], status, error_code)
            fields = {
                "method": self._scope["method"],
                "path": self._scope["path"][:200],
                "status": status,
                "ms": round((time.perf_counter() - started_s) * 1e3, 1),
            }
            if name := caller_of(self._scope).name:
                fields["key"] = name
            level = logging.DEBUG if self._scope["path"] in _POLLED_PATHS else logging.INFO
            logger.log(level, "http request", extra=fields if error_code is None else {**fields, "error": error_code})

    async def _run(self, app: ASGIApp) -> str | None:
        """Return the code of the error that ended the request, if one did."""
        try:
            await app(self._scope, self._receive, self._tracking_send)
        except ClientDisconnect:
            return CLIENT_LEFT
        except SlowClient as error:
            return error.code  # who does not read need not be told
        except EaglerayError as error:
            return await self._answer(error)
        except Exception:  # a bug becomes a 500 without its insides
            error_id = uuid.uuid4().hex[:12]
            logger.exception("unhandled error", extra={"error_id": error_id})
            return await self._answer(EaglerayError(f"internal error {error_id}; the server's log has the details"))
        return None

    async def _answer(self, error: EaglerayError) -> str:
        if self._status is None:
            await error_response(error)(self._scope, self._receive, self._tracking_send)
        elif self._is_event_stream and not self._is_complete:
            await self._tracking_send({"type": "http.response.body", "body": error_event(error), "more_body": False})
        return error.code

    def _tracking_send(self, message: Message) -> Awaitable[None]:
        # No coroutine of its own around that of `send`, for every token comes through here.
        if message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body", False)
        elif message["type"] == "http.response.start":
            self._status = message["status"]
            headers = list(message.get("headers", ()))
            self._is_event_stream = any(name == b"content-type" and b"event-stream" in value for name, value in headers)
            message = {**message, "headers": [*headers, *self._own_headers(message["status"])]}
        return self._send(message)

    def _own_headers(self, status: int) -> RawHeaders:
        headers = [(b"x-request-id", self._request_id.encode()), *caller_of(self._scope).quota.headers()]
        return [*headers, (b"connection", b"close")] if status in _CLOSING_STATUSES else headers


def how_it_ended(error: BaseException | None) -> str | None:
    """Return what ended an exchange early, as everybody counts it: an error's code, or CLIENT_LEFT; None: nothing."""
    if error is None:
        return None
    if isinstance(error, EaglerayError):
        return error.code
    # Serve cancels the handler of a client that left.
    return CLIENT_LEFT if isinstance(error, ClientDisconnect | asyncio.CancelledError) else EaglerayError.code


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _HARMLESS_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
