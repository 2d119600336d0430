"""Sends requests to an OpenAI endpoint and keeps what came back with its arrival times, unparsed.

While streams are open nothing is parsed: a client that decodes JSON on the server's cores measures itself.
"""

import asyncio
import ipaddress
import math
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp

from benchmarks.workloads import Planned

Api = Literal["completions", "chat"]


@dataclass(frozen=True)
class Endpoint:
    """Where requests go."""

    base_url: str
    """Up to and including `/v1`."""
    model: str
    api: Api = "completions"
    api_key: str | None = None
    ignore_eos: bool = True
    """Ask for exactly the planned output length; a field outside the OpenAI API that vLLM has too."""
    keeps_connections: bool = True
    """False: a connection for each request, for servers that close theirs after a stream without saying so."""

    @property
    def url(self) -> str:
        """The address requests are posted to."""
        return self.base_url.rstrip("/") + ("/completions" if self.api == "completions" else "/chat/completions")

    @property
    def headers(self) -> dict[str, str]:
        """What goes with every request."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def body(self, request: Planned) -> dict[str, Any]:
        """Return the JSON body of a streaming request. Raises SystemExit for token ids on the chat API."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": request.num_output, "stream": True}
        body |= {name: value for name, value in request.sampling._asdict().items() if value is not None}
        body["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.api == "completions":
            body["prompt"] = request.prompt
        elif isinstance(request.prompt, str):
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            raise SystemExit("the chat API takes text, not token ids; use --prompts words")
        return body


@dataclass
class RawStream:
    """One request's outcome as bytes and times; times are seconds of one monotonic clock."""

    sent_at: float
    status: int | None = None
    ended_at: float = 0.0
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    """Arrival time and bytes, as the socket gave them."""
    failure: str | None = None
    """Kind of client-side failure: the exception's name, or `not finished in time`."""


def require_loopback(base_url: str) -> None:
    """Raise SystemExit unless every address of the URL's host is a loopback address."""
    host = urlsplit(base_url).hostname
    if host is None:
        raise SystemExit(f"{base_url!r} is not a URL; use for example http://127.0.0.1:8000/v1")
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise SystemExit(f"{host}: {error}") from None
    if not all(ipaddress.ip_address(str(address).split("%")[0]).is_loopback for address in addresses):
        raise SystemExit(
            f"{host} is not this machine; a load test of another one needs its owner's consent and --allow-remote"
        )


async def closed_loop(
    endpoint: Endpoint, planned: Iterable[Planned], concurrency: int, max_seconds: float, send_seconds: float = math.inf
) -> list[RawStream]:
    """Keep `concurrency` streams open until all requests are done or the time is up; return them in order sent.

    After `send_seconds` nothing more is sent; what is open may go on until `max_seconds`.
    """
    waiting = iter(planned)
    last_send_s = time.perf_counter() + send_seconds

    async def lane(send: "Send") -> None:
        for request in waiting:
            if time.perf_counter() >= last_send_s:
                return
            await send(request)

    async def drive(send: "Send") -> None:
        await asyncio.gather(*(lane(send) for _ in range(concurrency)))

    return await _run(endpoint, concurrency, max_seconds, drive)


async def open_loop(
    endpoint: Endpoint, planned: Sequence[Planned], max_in_flight: int, max_seconds: float
) -> list[RawStream]:
    """Send each request at its time, whatever is still open; return them in order sent.

    A request that comes due while `max_in_flight` are open is not sent and counts as failed.
    """
    start = time.perf_counter()
    num_open = 0
    refused: list[RawStream] = []

    async def one(send: "Send", request: Planned) -> None:
        nonlocal num_open
        await asyncio.sleep(max(0.0, start + request.at_s - time.perf_counter()))
        if num_open >= max_in_flight:
            refused.append(RawStream(time.perf_counter(), failure="not sent: too many in flight"))
            return
        num_open += 1
        try:
            await send(request)
        finally:
            num_open -= 1

    async def drive(send: "Send") -> None:
        await asyncio.gather(*(one(send, request) for request in planned))

    streams = await _run(endpoint, max_in_flight, max_seconds, drive)
    return sorted(streams + refused, key=lambda stream: stream.sent_at)


Send = Callable[[Planned], Awaitable[None]]


async def _run(
    endpoint: Endpoint, max_connections: int, max_seconds: float, drive: Callable[[Send], Awaitable[None]]
) -> list[RawStream]:
    streams: list[RawStream] = []
    connector = aiohttp.TCPConnector(limit=max_connections, force_close=not endpoint.keeps_connections)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=endpoint.headers) as session:

        async def send(request: Planned) -> None:
            stream = RawStream(time.perf_counter())
            streams.append(stream)
            await _receive(session, endpoint, request, stream)

        try:
            async with asyncio.timeout(max_seconds):
                await drive(send)
        except TimeoutError:
            pass  # Streams still open carry their failure; the others are results.
    return streams


async def _receive(session: aiohttp.ClientSession, endpoint: Endpoint, request: Planned, stream: RawStream) -> None:
    """Fill `stream`; client errors become its failure, cancellation too and then goes on."""
    try:
        async with session.post(endpoint.url, json=endpoint.body(request)) as response:
            stream.status = response.status
            async for chunk in response.content.iter_any():
                stream.chunks.append((time.perf_counter(), chunk))
    except asyncio.CancelledError:
        stream.failure = "not finished in time"
        raise
    except (aiohttp.ClientError, OSError) as error:
        stream.failure = type(error).__name__
    finally:
        stream.ended_at = time.perf_counter()
