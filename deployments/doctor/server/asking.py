"""Asks a server over HTTP, one connection a question, and notes when each byte came. Standard library only."""

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

_MAX_BODY_BYTES = 32 * 2**20


class Unreachable(Exception):
    """Nothing that speaks HTTP answered; says what happened."""


class Silent(Unreachable):
    """Something took the connection, and then said nothing for too long."""


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Names in small letters."""
    body: bytes
    total_s: float
    """From the first attempt to connect to the last byte."""
    arrivals_s: tuple[float, ...] = ()
    """When each read brought something."""

    def text(self, most: int = 200) -> str:
        """Return the beginning of the body on one line."""
        return " ".join(self.body.decode("utf-8", "replace").split())[:most]


class Server:
    """Where to ask, and with which key."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        """`timeout_s` bounds each wait for the server to connect or to go on."""
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self.host = parts.hostname or ""
        self.is_secure = parts.scheme == "https"
        self._port = parts.port
        # A person gives the address of the API as their client has it.
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._key = api_key
        self._timeout_s = timeout_s

    @property
    def has_key(self) -> bool:
        """Whether there is a key to ask with."""
        return self._key is not None

    def get(self, path: str, *, with_key: bool = True) -> Answer:
        """Ask for a page. Raises Unreachable."""
        return self._ask("GET", path, None, with_key)

    def post(self, path: str, body: object) -> Answer:
        """Send JSON. Raises Unreachable."""
        return self._ask("POST", path, json.dumps(body).encode(), with_key=True)

    def _ask(self, method: str, path: str, body: bytes | None, with_key: bool) -> Answer:
        started_s = time.monotonic()
        kind = http.client.HTTPSConnection if self.is_secure else http.client.HTTPConnection
        headers = {"content-type": "application/json"} if body is not None else {}
        if with_key and self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection = kind(self.host, self._port, timeout=self._timeout_s)
            try:
                connection.request(method, self._prefix + path, body, headers)
                response = connection.getresponse()
                parts, arrivals = _read(response, started_s)
                names = {name.lower(): value for name, value in response.getheaders()}
                return Answer(response.status, names, b"".join(parts), time.monotonic() - started_s, tuple(arrivals))
            finally:
                connection.close()
        except ssl.SSLError as error:
            raise Unreachable(f"{self.url}: TLS fails: {error.reason or error}") from None
        except TimeoutError:
            raise Silent(f"{self.url}{path}: nothing came for {self._timeout_s:g} s") from None
        except OSError as error:
            raise Unreachable(f"{self.url}: {error.strerror or error}") from None
        except http.client.HTTPException as error:
            raise Unreachable(f"{self.url}: answers, but not in HTTP: {type(error).__name__}") from None


def _read(response: http.client.HTTPResponse, started_s: float) -> tuple[list[bytes], list[float]]:
    parts: list[bytes] = []
    arrivals: list[float] = []
    num_bytes = 0
    while (part := response.read1(65536)) and num_bytes < _MAX_BODY_BYTES:
        parts.append(part)
        arrivals.append(time.monotonic() - started_s)
        num_bytes += len(part)
    return parts, arrivals
