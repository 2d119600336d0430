"""Red when a name reaches the file system or the network, or when what a caller sends turns up where others look."""

import asyncio
import hashlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deployments.gateway.config import GatewayConfig
from tests.support.fake_groups import ScriptedGroup
from tests.support.gateways import serving

NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "tiny/../../x",
    "file:///etc/passwd",
    "http://10.0.0.1/x",
    "tiny\x00",
    "~root",
]
CANARY = "canary-5bd1"
KEY = "sk-canary-5bd1-key"

_WATCHED: list[list[str]] = []


def _note(event: str, arguments: tuple) -> None:
    if _WATCHED and event in ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo"):
        _WATCHED[-1].append(f"{event} {arguments[0]!r}")


sys.addaudithook(_note)


@contextmanager
def watching() -> Iterator[list[str]]:
    """Yield the files and addresses that are opened meanwhile."""
    _WATCHED.append([])
    try:
        yield _WATCHED[-1]
    finally:
        _WATCHED.pop()


def test_the_watch_sees_a_file():
    with watching() as seen, open(__file__):
        assert seen


@pytest.mark.parametrize("name", NAMES)
def test_a_models_name_never_reaches_the_file_system_or_the_network(name):
    async def main():
        async with serving(ScriptedGroup("x")) as client:
            with watching() as seen:
                for answer in (
                    await client.chat(model=name),
                    await client.complete(model=name),
                    await client.get(f"/v1/models/{name}"),
                ):
                    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
            assert seen == []

    asyncio.run(main())


def test_content_parts_that_name_an_address_are_refused_without_a_connection():
    async def main():
        async with serving(ScriptedGroup("x")) as client:
            with watching() as seen:
                part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}
                answer = await client.chat(messages=[{"role": "user", "content": [part]}])
            assert answer.status == 400
            assert seen == []

    asyncio.run(main())


def test_prompts_keys_salts_and_headers_are_in_no_log_line_metric_or_error(caplog, monkeypatch):
    config = GatewayConfig(api_keys_sha256=(hashlib.sha256(KEY.encode()).hexdigest(),))
    headers = {"authorization": f"Bearer {KEY}", "x-custom": CANARY, "x-request-id": f"{CANARY}\n"}

    async def main():
        async with serving(ScriptedGroup(CANARY), config=config) as client:
            body = {"model": "tiny", "prompt": CANARY, "cache_salt": CANARY, "stop": [f"{CANARY}-stop"], "user": CANARY}
            assert (await client.post("/v1/completions", body, headers)).status == 200
            for extra in ({"n": 99}, {"prompt": {CANARY: 1}}, {"stop": [CANARY] * 99}, {"logit_bias": {CANARY: 1}}):
                answer = await client.post("/v1/completions", body | extra, headers)
                assert answer.status == 400 and CANARY not in answer.body.decode()
            wrong = await client.get("/v1/models", {"authorization": f"Bearer {KEY}-wrong"})
            assert wrong.status == 401 and CANARY not in wrong.body.decode()
            return (await client.get("/metrics", headers)).body.decode()

    monkeypatch.setattr(logging.getLogger("deployments"), "propagate", True)
    with caplog.at_level(logging.DEBUG):
        metrics = asyncio.run(main())
    assert CANARY not in metrics
    assert caplog.records
    assert not [record for record in caplog.records if CANARY in repr(vars(record))]
