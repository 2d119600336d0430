"""A gateway over groups of the same process, and an ASGI client that can leave in the middle."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

from cluster.submit_target import SubmitTarget
from deployments.gateway.config import GatewayConfig
from deployments.gateway.gateway import Gateway
from deployments.groups.directory import GroupDirectory
from deployments.groups.in_process import InProcessTransport
from deployments.groups.transport import GroupListener
from tests.support.byte_tokenizer import ByteTokenizer


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    is_complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error object; fails the test unless the body has OpenAI's shape and a harmless size."""
        assert self.headers["content-type"] == "application/json"
        assert len(self.body) <= 4096
        (error,) = self.json().values()
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] is None or isinstance(error["code"], str)
        assert "Traceback" not in error["message"]
        return error

    def events(self) -> list[Any]:
        """The data of every server-sent event; `[DONE]` as text."""
        assert self.body.endswith(b"\n\n")
        data = [event.removeprefix("data: ") for event in self.body.decode().split("\n\n")[:-1]]
        return [item if item == "[DONE]" else json.loads(item) for item in data]


class AsgiClient:
    """Calls an ASGI app as a server would."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def call(
        self,
        method: str,
        path: str,
        body: bytes | dict | None = None,
        headers: dict[str, str] | None = None,
        leave_when: Callable[[Answer], bool] = lambda answer: False,
        body_parts: list[bytes] | None = None,
        body_never_ends: bool = False,
    ) -> Answer:
        """Return the answer; with `leave_when`, what had come when the client left. Takes parts out of `body_parts`."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body or b""
        parts = body_parts if body_parts is not None else [data]
        answer = Answer()
        left = asyncio.Event()

        async def receive() -> Message:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts) or body_never_ends}
            # The server reports leaving at a later turn of the loop, as a socket would.
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.parts.append(message.get("body", b""))
                answer.is_complete = not message.get("more_body", False)
            if leave_when(answer):
                left.set()

        if leave_when(answer):
            asyncio.get_running_loop().call_later(0.01, left.set)
        raw_headers = {"content-type": "application/json", **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in raw_headers.items()],
            "scheme": "http",
            "server": ("testserver", 80),
            "root_path": "",
        }
        await self.app(scope, receive, send)
        return answer

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return await self.call("GET", path, headers=headers)

    async def post(self, path: str, body: bytes | dict, headers: dict[str, str] | None = None) -> Answer:
        return await self.call("POST", path, body, headers)

    async def chat(self, **fields: Any) -> Answer:
        messages = [{"role": "user", "content": "Hi"}]
        return await self.post("/v1/chat/completions", {"model": "tiny", "messages": messages, **fields})

    async def complete(self, **fields: Any) -> Answer:
        return await self.post("/v1/completions", {"model": "tiny", "prompt": "Hi", **fields})


def make_gateway(targets: Sequence[SubmitTarget], config: GatewayConfig | None = None, **options: Any) -> Gateway:
    """Return a gateway whose groups are reached in process, through the directory and router every request takes."""
    by_id = {target.status().group_id: target for target in targets}
    config = config or GatewayConfig()

    async def connect(address: object, group_id: str, listener: GroupListener) -> InProcessTransport:
        return InProcessTransport(by_id[group_id])

    directory = GroupDirectory(config.models or None, connect=connect)
    return Gateway(config, directory, **{"load": lambda source, revision: ByteTokenizer(), **options})


async def announce_all(gateway: Gateway, targets: Sequence[SubmitTarget]) -> None:
    """Return once every target is connected and tokenizers are loaded."""
    for target in targets:
        gateway.announce(target.status())
    async with asyncio.timeout(5):
        while not all_ready(gateway, targets):
            await asyncio.sleep(0.001)


def all_ready(gateway: Gateway, targets: Sequence[SubmitTarget]) -> bool:
    loaded = {model.name for model in gateway._catalog.list()}
    return all(
        target.status().model in loaded
        and target.status().group_id in gateway._directory.open_groups(target.status().model)
        for target in targets
    )


@asynccontextmanager
async def serving(
    *targets: SubmitTarget, config: GatewayConfig | None = None, **options: Any
) -> AsyncIterator[AsgiClient]:
    """Yield a client of a gateway that knows all `targets`."""
    gateway = make_gateway(targets, config, **options)
    try:
        await announce_all(gateway, targets)
        yield AsgiClient(gateway.asgi_app())
    finally:
        await gateway.close()
