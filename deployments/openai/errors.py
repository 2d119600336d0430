"""Errors as OpenAI clients know them: the only place where HTTP status codes are chosen.

The clients retry 408, 409, 429 and every status from 500 on, and honour Retry-After up to 120 s. So what the caller
must change never gets one of those, and what may pass by itself always carries Retry-After.
"""

import math
from typing import NamedTuple

import msgspec
from starlette.responses import Response

from core.errors import (
    EaglerayError,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    QueueFull,
    ReplicaFailed,
    RequestError,
    Unauthorized,
)
from core.frames import ConnectionLost
from deployments.http.errors import (
    BodyTimeout,
    Forbidden,
    HeadersTooLarge,
    MethodNotAllowed,
    RateLimited,
    RouteNotFound,
    UnsupportedMediaType,
)

_MAX_MESSAGE_CHARACTERS = 1000
_MAX_RETRY_AFTER_S = 120
"""The OpenAI client does not retry at all if it is told to wait longer."""


class _Answer(NamedTuple):
    status: int
    type: str


_ANSWERS: dict[type[EaglerayError], _Answer] = {
    RequestError: _Answer(400, "invalid_request_error"),
    Unauthorized: _Answer(401, "authentication_error"),
    Forbidden: _Answer(403, "permission_error"),
    ModelNotFound: _Answer(404, "invalid_request_error"),
    RouteNotFound: _Answer(404, "invalid_request_error"),
    MethodNotAllowed: _Answer(405, "invalid_request_error"),
    BodyTimeout: _Answer(408, "invalid_request_error"),
    PayloadTooLarge: _Answer(413, "invalid_request_error"),
    UnsupportedMediaType: _Answer(415, "invalid_request_error"),
    HeadersTooLarge: _Answer(431, "invalid_request_error"),
    RateLimited: _Answer(429, "rate_limit_error"),
    QueueFull: _Answer(429, "rate_limit_error"),
    Overloaded: _Answer(503, "server_error"),
    ReplicaFailed: _Answer(502, "server_error"),
    ConnectionLost: _Answer(502, "server_error"),
    EaglerayError: _Answer(500, "server_error"),
}


class _ErrorObject(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _ErrorBody(msgspec.Struct):
    error: _ErrorObject


def status_of(error: EaglerayError) -> int:
    """Return the HTTP status for `error`."""
    return _answer(error).status


def error_body(error: EaglerayError) -> bytes:
    """Return `{"error": {message, type, param, code}}`, bounded in length."""
    message = error.message[:_MAX_MESSAGE_CHARACTERS]
    return msgspec.json.encode(_ErrorBody(_ErrorObject(message, _answer(error).type, error.param, error.code)))


def error_event(error: EaglerayError) -> bytes:
    """Return the server-sent event that ends a stream which broke after its first byte.

    No `[DONE]` follows: a client that looks for nothing else must not take what it has for the whole answer.
    """
    return b"data: " + error_body(error) + b"\n\n"


def error_response(error: EaglerayError, headers: dict[str, str] | None = None) -> Response:
    """Return the whole HTTP answer; `headers` are added to it."""
    all_headers = dict(headers or {})
    if isinstance(error, Overloaded | ReplicaFailed | ConnectionLost):
        wait_s = math.ceil(error.retry_after_s or 1)
        all_headers["retry-after"] = str(min(max(wait_s, 1), _MAX_RETRY_AFTER_S))
    return Response(error_body(error), status_of(error), all_headers, media_type="application/json")


def _answer(error: EaglerayError) -> _Answer:
    return next(_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS)
