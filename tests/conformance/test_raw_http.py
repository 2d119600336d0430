"""A gateway behind a real HTTP server, asked by bare sockets: red when a client can hold what is not its own."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest

from deployments.gateway.config import GatewayConfig, HttpLimits
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.engines import make_config, make_engine, tiny_spec
from tests.support.fake_groups import MAX_MODEL_LEN, EngineGroup, ScriptedGroup
from tests.support.fake_ranks import FakeRankPool
from tests.support.http_servers import http_gateway

BODY_TIMEOUT_S = 0.3
SLOW_CLIENT_S = 0.4
LIMITS = HttpLimits(max_body_bytes=20_000, body_timeout_s=BODY_TIMEOUT_S)
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"model": "tiny", "prompt": "Hi"}).encode()
NEXT = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def url():
    with http_gateway([ScriptedGroup("abc")], GatewayConfig(limits=LIMITS)) as url:
        yield url


def connected(url: str, receive_buffer_bytes: int | None = None) -> socket.socket:
    sock = socket.socket()
    if receive_buffer_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    sock.settimeout(10)
    address = urlsplit(url)
    sock.connect((address.hostname, address.port))
    return sock


def exchange(url: str, data: bytes) -> bytes:
    """Return everything the server says until it closes the connection; fails the test if it does not in 10 s."""
    with connected(url) as sock:
        sock.sendall(data)
        parts = []
        try:
            while part := sock.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass  # it closed with some of what we sent unread
        return b"".join(parts)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"Content-Length: 100\r\n\r\n{", 408),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"{"), 408),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b" " * 10_000) * 3, 413),
        (HEAD + b"Content-Length: 99999999\r\n\r\n" + NEXT, 413),
        (HEAD + b"X-Filler: " + b"x" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n" + NEXT, 431),
        (HEAD + b"".join(b"X-%d: 1\r\n" % i for i in range(200)) + b"Content-Length: 0\r\n\r\n" + NEXT, 431),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT, 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef" + NEXT, 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (HEAD + b"X-Folded: a\r\n b\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not HTTP at all\r\n\r\n", 400),
    ],
    ids=["slow body", "slow chunks", "long chunks", "long", "long head", "many headers", "CL and TE", "two lengths"]
    + ["bad chunk", "bad coding", "TLS"],
)
def test_a_bad_exchange_ends_in_one_answer_and_a_closed_connection(url: str, data: bytes, status: int):
    answer = exchange(url, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    # What follows in the same bytes is nobody's request.
    assert answer.count(b"HTTP/1.1 ") == 1


def test_the_server_goes_on_after_all_that(url: str):
    assert httpx.get(f"{url}/livez").status_code == 200
    assert exchange(url, HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY).endswith(b"}")


class SlowRankPool(FakeRankPool):
    """Takes 20 ms a step, so that its requests do not end by themselves meanwhile."""

    def collect(self, timeout_s):
        time.sleep(0.02)
        return super().collect(timeout_s)


def test_a_client_that_does_not_read_loses_its_stream_and_its_blocks_and_nobody_else_does():
    config = make_config(model={"source": "fake", "max_model_len": MAX_MODEL_LEN}, scheduler={"max_running": 80})
    ranks = SlowRankPool(vocab_size=128)
    spec = tiny_spec(vocab_size=ByteTokenizer.vocab_size)
    group = EngineGroup(make_engine(ranks, num_blocks=4000, config=config, spec=spec))
    gateway = GatewayConfig(limits=HttpLimits(slow_client_s=SLOW_CLIENT_S))
    with http_gateway([group], gateway, send_buffer_bytes=4096) as url, connected(url, 4096) as stuck:
        body = {"model": "tiny", "prompt": ["Hi"] * 16, "n": 4, "max_tokens": 190, "ignore_eos": True, "stream": True}
        data = json.dumps(body).encode()
        reader = ReadingClient(url)
        stuck.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        wait_for(lambda: group.load().num_running > 60)
        started_s = time.monotonic()
        wait_for(lambda: group.load().num_running <= 1)
        waited_s = time.monotonic() - started_s
        assert reader.num_events_after_its_end() == 100
        wait_for(lambda: group.load().num_running == 0)
        load = group.load()
        assert load.num_free_blocks + load.num_cached_blocks == load.num_blocks
        # By itself its last token would have come after 190 steps.
        assert SLOW_CLIENT_S <= waited_s < 190 * 0.02
        status = 'status="slow_client",gateway="gateway"} 1.0'
        assert status in httpx.get(f"{url}/metrics").text
    group.close()


class ReadingClient:
    """Reads a stream of 100 tokens in a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._num_events = 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def num_events_after_its_end(self) -> int:
        self._thread.join(timeout=20)
        return self._num_events

    def _read(self) -> None:
        body = {"model": "tiny", "prompt": "Ho", "max_tokens": 100, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{self._url}/v1/completions", json=body, timeout=20) as answer:
            for line in answer.iter_lines():
                self._num_events += '"text":"' in line


def wait_for(holds) -> None:
    until_s = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.005)
