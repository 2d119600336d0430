"""What a load balancer and its clients see: requests from the machines' own network, to the machines' addresses."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.terraform.harness.lan import Lan

PORT = 8000
_HEALTH_PATH = "/readyz"
_HEALTH_LIMIT_S = 10.0
_ANSWER_LIMIT_S = 30.0


@dataclass(frozen=True)
class Reply:
    """What came back; status 0: no HTTP answer came."""

    status: int
    body: str
    seconds: float

    @property
    def text(self) -> str:
        """The answer of the model."""
        return json.loads(self.body)["choices"][0]["message"]["content"]


@dataclass
class Traffic:
    """Requests that were sent one after the other, while something else happened."""

    replies: list[Reply] = field(default_factory=list)

    @property
    def failures(self) -> list[Reply]:
        """Those without an answer."""
        return [reply for reply in self.replies if reply.status != 200]


class LoadBalancer:
    """Speaks HTTP to machines of one network."""

    def __init__(self, lan: Lan, model: str, api_key: str) -> None:
        self._lan = lan
        self._model = model
        self._key = api_key

    def is_healthy(self, address: str) -> bool:
        """Return whether the machine passes the health check of the target group."""
        return (
            self._lan.run(_send, f"http://{address}:{PORT}{_HEALTH_PATH}", None, {}, _HEALTH_LIMIT_S).result().status
            == 200
        )

    def ask(self, address: str, question: str, api_key: str | None = None) -> Reply:
        """Return the model's answer through one machine's proxy; always the same one to the same question."""
        return self._ask(address, question, api_key).result()

    @contextmanager
    def traffic(self, address: str, question: str, num_clients: int = 2) -> Iterator[Traffic]:
        """Have clients ask on and on, each its next question after the last answer, until the block ends."""
        traffic, is_over = Traffic(), threading.Event()

        def ask_on() -> None:
            while not is_over.is_set():
                traffic.replies.append(self.ask(address, question))

        clients = [threading.Thread(target=ask_on, daemon=True) for _ in range(num_clients)]
        for client in clients:
            client.start()
        try:
            yield traffic
        finally:
            is_over.set()
            for client in clients:
                client.join(_ANSWER_LIMIT_S)

    def _ask(self, address: str, question: str, api_key: str | None) -> "Future[Reply]":
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 24,
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key or self._key}"}
        url = f"http://{address}:{PORT}/v1/chat/completions"
        return self._lan.run(_send, url, json.dumps(body).encode(), headers, _ANSWER_LIMIT_S)


def _send(url: str, body: bytes | None, headers: Mapping[str, str], limit_s: float) -> Reply:
    started_s = time.monotonic()
    status, text = 0, ""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, dict(headers)), timeout=limit_s) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        status, text = refusal.code, refusal.read().decode(errors="replace")
    except OSError as error:
        text = str(error)
    return Reply(status, text, time.monotonic() - started_s)
