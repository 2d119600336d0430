"""Bodies are bounded while they are read, and parsed strictly.

Refused: bodies over the limit (whatever Content-Length says), slow bodies, anything but UTF-8, NaN and Infinity, half
of a surrogate pair, and the shapes that json_shape.py refuses.
"""

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from core.errors import InvalidRequest, PayloadTooLarge
from deployments.gateway.config import HttpLimits
from deployments.http.errors import BodyTimeout, InvalidText, MalformedJson, UnsupportedMediaType
from deployments.http.json_shape import check_shape

T = TypeVar("T")

_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)


async def read_body(headers: Headers, receive: Receive, limits: HttpLimits) -> bytes:
    """Return the whole body of a JSON request.

    Raises UnsupportedMediaType, PayloadTooLarge, BodyTimeout, and ClientDisconnect if the client left.
    """
    _check_headers(headers, limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read(receive, limits.max_body_bytes)
    except TimeoutError:
        raise BodyTimeout(
            f"the request body did not arrive within {limits.body_timeout_s:g} s; send it again"
        ) from None


def check_json(body: bytes) -> None:
    """Raise MalformedJson or DuplicateKey unless `body` is a sanely shaped object in UTF-8; `decode` reads the rest."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJson(f"the body is not valid UTF-8 at byte {error.start}; encode it as UTF-8") from None
    if body.lstrip()[:1] != b"{":
        raise MalformedJson("the body is not a JSON object; send one")
    check_shape(body)


def decode(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw, param: str | None = None) -> T:
    """Return what `decoder` makes of `data`. Raises MalformedJson, or InvalidRequest naming the field.

    `param`: the field that `data` is the value of, if it is not the whole body.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _field_error(str(error), param) from None
    except msgspec.DecodeError as error:
        if _LONE_SURROGATE.search(data):
            raise InvalidText("the body has half of a surrogate pair; send whole characters") from None
        raise MalformedJson(f"the body is not valid JSON: {error}") from None
    except (RecursionError, UnicodeDecodeError):
        raise MalformedJson("the body is not valid JSON, or is nested too deeply") from None


def _check_headers(headers: Headers, limits: HttpLimits) -> None:
    media_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("the body must be JSON; send the header `Content-Type: application/json`")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("compressed request bodies are not supported; send it without Content-Encoding")
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:19]) > limits.max_body_bytes:
        raise _too_large(limits.max_body_bytes)


async def _read(receive: Receive, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the request body is larger than the limit of {max_bytes} bytes; send less")


def _field_error(message: str, param: str | None) -> InvalidRequest:
    """Turn msgspec's `Expected `int | null`, got `str` - at `$.n`` into OpenAI's way of saying it."""
    problem, _, path = message.partition(" - at ")
    field = path.replace("`", "").removeprefix("key in ").removeprefix("$").removeprefix(".")
    name = ".".join(part for part in (param, field) if part) or None
    if problem.startswith("Object missing required field"):
        missing = problem.split("`")[1]
        name = f"{name}.{missing}" if name else missing
        return InvalidRequest(f"missing required parameter: '{name}'", param=name)
    problem = problem[:1].lower() + problem[1:].replace(" | null", "")
    return InvalidRequest(f"invalid value for '{name or 'body'}': {problem[:300]}", param=name)
