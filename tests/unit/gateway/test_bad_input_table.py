"""One row for each kind of bad input: red when one gets another status or code, a long answer, an echo, or our time."""

import asyncio
import json
import time
from typing import Any, NamedTuple

import pytest

from deployments.gateway.config import GatewayConfig, HttpLimits
from tests.support.fake_groups import MAX_MODEL_LEN, ScriptedGroup
from tests.support.gateways import Answer, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CANARY = "canary-5bd1"
MAX_SECONDS = 0.5
"""Of processor time: ten times what any row takes on a quiet machine."""
MAX_ANSWER_BYTES = 4096
LIMITS = HttpLimits(body_timeout_s=0.01)


def chat(**fields: Any) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": CANARY}], **fields}
    return json.dumps(body).encode()


def content(value: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": value}])


def with_text(text: bytes) -> bytes:
    return b'{"model": "tiny", "messages": [{"role": "user", "content": "' + text + b'"}]}'


def with_field(text: bytes) -> bytes:
    return b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], ' + text + b"}"


def complete(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny", "prompt": CANARY, **fields}).encode()


class Row(NamedTuple):
    what: str
    body: bytes
    status: int
    code: str
    path: str = CHAT
    method: str = "POST"
    headers: dict[str, str] = {}


def rows_of(status: int, code: str, bodies: dict[str, bytes], path: str = CHAT) -> list[Row]:
    return [Row(what, body, status, code, path) for what, body in bodies.items()]


TABLE = [
    *rows_of(
        400,
        "invalid_json",
        {
            "empty": b"",
            "truncated": chat()[:-5],
            "an array": b"[1]",
            "a text": b'"canary-5bd1"',
            "two values": chat() + b"{}",
            "65 levels": with_field(b'"metadata": ' + b"[" * 64 + b"]" * 64),
            "100,000 levels": with_field(b'"metadata": ' + b"[" * 100_000 + b"]" * 100_000),
            "4 MB of brackets": b'{"a": ' + b"[" * 4_000_000,
            "600 kB of empty messages": b'{"model": "tiny", "messages": [' + b"{}," * 200_000 + b"{}]}",
            "4 MB of empty strings": with_field(b'"metadata": [' + b'"",' * 1_000_000 + b"1]"),
            "20 digits": with_field(b'"seed": ' + b"1" * 20),
            "5,000 digits where it is ignored": with_field(b'"metadata": {"a": -' + b"1" * 5000 + b"}"),
            "4 MB of digits": with_field(b'"seed": ' + b"1" * 4_000_000),
            "NaN": with_field(b'"temperature": NaN'),
            "Infinity": with_field(b'"top_p": Infinity'),
            "-Infinity where it is ignored": with_field(b'"metadata": {"a": -Infinity}'),
            "invalid UTF-8": with_text(b"\xff\xfe"),
            "UTF-16": chat().decode().encode("utf-16"),
            "a raw control character": with_text(b"a\x00b"),
        },
    ),
    *rows_of(
        400,
        "duplicate_key",
        {
            "a key twice": with_field(b'"n": 1, "n": 2'),
            "a key twice, spelled differently": with_field(b'"n": 1, "\\u006e": 2'),
            "a key twice deep inside": with_field(b'"metadata": {"a": [{"b": 1, "c": {}, "b": 1}]}'),
            "a role twice": b'{"model": "tiny", "messages": [{"role": "user", "role": "system", "content": "x"}]}',
        },
    ),
    *rows_of(
        400,
        "invalid_text",
        {
            "a lone surrogate": with_text(b"\\ud800 canary-5bd1"),
            "surrogates in the wrong order": with_text(b"\\udc00\\ud800"),
        },
    ),
    *rows_of(
        400,
        "unknown_parameter",
        {
            "a typo": chat(max_tokenss=5),
            "a megabyte of name": chat(**{"x" * 1_000_000: 1}),
            "a template of the caller's": chat(chat_template="{{ 1 }}"),
            "variables for the template": chat(chat_template_kwargs={"a": 1}),
            "prompt embeddings": chat(prompt_embeds="AAAA"),
            "a Python attribute": chat(__class__=1),
        },
    ),
    *rows_of(
        400,
        "unsupported_parameter",
        {
            "tools": chat(tools=[{"type": "function", "function": {"name": "f"}}]),
            "a schema": chat(response_format={"type": "json_schema", "json_schema": {"schema": {"pattern": "(a+)+$"}}}),
            "audio": chat(modalities=["audio"]),
        },
    ),
    *rows_of(
        400,
        "unsupported_content",
        {
            "an image to fetch": content([{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]),
            "a file": content([{"type": "file", "file": {"file_id": "../../etc/passwd"}}]),
        },
    ),
    *rows_of(
        400,
        "invalid_request",
        {
            "n as text": chat(n="3"),
            "n as truth": chat(n=True),
            "n of 9": chat(n=9),
            "n of 16384": chat(n=16384),
            "max_tokens of 0": chat(max_tokens=0),
            "max_tokens of -1": chat(max_tokens=-1),
            "temperature below 0": chat(temperature=-0.5),
            "temperature above 2": chat(temperature=2.5),
            "top_p of 0": chat(top_p=0),
            "top_k of -2": chat(top_k=-2),
            "a bias for a text": chat(logit_bias={CANARY: 1}),
            "a bias out of the vocabulary": chat(logit_bias={"99999": 1}),
            "a bias of 101": chat(logit_bias={"1": 101}),
            "20,000 biases": chat(logit_bias={str(token): 1 for token in range(20_000)}),
            "21 alternatives": chat(logprobs=True, top_logprobs=21),
            "alternatives without logprobs": chat(top_logprobs=3),
            "17 stop strings": chat(stop=[CANARY] * 17),
            "an empty stop string": chat(stop=[""]),
            "257 characters to stop at": chat(stop="x" * 257),
            "no messages": chat(messages=[]),
            "2,049 messages": chat(messages=[{"role": "user", "content": "x"}] * 2049),
            "roles out of order": chat(messages=[{"role": "assistant", "content": CANARY}]),
            "content of null": content(None),
            "an unknown role": chat(messages=[{"role": CANARY, "content": "x"}]),
            "100,000 bad messages": chat(messages=[{"role": "x"}] * 8_000),
            "an empty salt": chat(cache_salt=""),
            "a long salt": chat(cache_salt="x" * 257),
            "a line end in a name": chat(messages=[{"role": "user", "content": "x", "name": "a\nb"}]),
        },
    ),
    *rows_of(
        400,
        "invalid_request",
        {
            "a token id below 0": complete(prompt=[-1]),
            "a token id out of the vocabulary": complete(prompt=[260]),
            "a token id beyond 32 bits": complete(prompt=[2**31]),
            "33 prompts": complete(prompt=["a"] * 33),
            "32 prompts, 8 answers each": complete(prompt=["a"] * 32, n=8),
            "an empty prompt": complete(prompt=""),
        },
        COMPLETIONS,
    ),
    *rows_of(
        400,
        "context_length_exceeded",
        {
            "a prompt over the context": content("x" * MAX_MODEL_LEN),
            "a prompt of 3 MB": content("x" * 3_000_000),
            "max_tokens over the context": chat(max_tokens=10**9),
        },
    ),
    *rows_of(
        404,
        "model_not_found",
        {
            "an unknown model": chat(model="gpt-4"),
            "a path": chat(model="../../etc/passwd"),
            "a megabyte of model": chat(model="m" * 1_000_000),
        },
    ),
    Row("a body that says it is too long", b"{}", 413, "payload_too_large", headers={"content-length": "99999999"}),
    Row("a body that is too long", chat(user="x" * 4 * 2**20), 413, "payload_too_large"),
    Row("a form", chat(), 415, "unsupported_media_type", headers={"content-type": "multipart/form-data"}),
    Row("gzip", chat(), 415, "unsupported_media_type", headers={"content-encoding": "gzip"}),
    Row("17 kB of one header", chat(), 431, "headers_too_large", headers={"x-filler": CANARY * 1600}),
    Row("101 headers", chat(), 431, "headers_too_large", headers={f"x-{i}": "1" for i in range(100)}),
    Row("a path of 20 kB", b"", 431, "headers_too_large", path="/" + "x" * 20_000, method="GET"),
    Row("a Host that is none", chat(), 400, "bad_host", headers={"host": "a/?x="}),
    Row("a Host of another's", chat(), 400, "bad_host", headers={"host": "evil.example"}),
    Row("a wrong path", chat(), 404, "not_found", path="/invocations"),
    Row("a wrong method", b"", 405, "method_not_allowed", method="GET"),
    Row("an invented method", b"", 405, "method_not_allowed", method="BREW"),
]


async def answer_to(row: Row) -> tuple[Answer, float]:
    group = ScriptedGroup("x")
    async with serving(group) as client:
        started_s = time.thread_time()
        answer = await client.call(row.method, row.path, row.body, row.headers)
        seconds = time.thread_time() - started_s
    assert group.requests == []
    return answer, seconds


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.what)
def test_bad_input_is_refused_by_the_table(row: Row):
    answer, seconds = asyncio.run(answer_to(row))
    assert (answer.status, answer.error["code"]) == (row.status, row.code)
    assert len(answer.body) <= MAX_ANSWER_BYTES
    assert CANARY not in answer.body.decode()
    assert CANARY not in str(answer.headers)
    assert answer.headers["x-request-id"]
    assert seconds < MAX_SECONDS
    if row.status in (413, 431):
        assert answer.headers["connection"] == "close"


def test_a_slow_body_is_a_408_after_which_the_connection_is_closed():
    async def main():
        async with serving(ScriptedGroup(), config=GatewayConfig(limits=LIMITS)) as client:
            answer = await client.call("POST", CHAT, body_parts=[b"{"], body_never_ends=True)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert answer.headers["connection"] == "close"

    asyncio.run(main())


@pytest.mark.parametrize(
    "body",
    [
        with_text(b"\\u0000\\u0007 <|im_start|> \\ud83d\\ude00"),
        with_text(b'\\"n\\": 1, \\"n\\": 2 {{{[[[ 11111111111111111111111'),
        with_text(b"\\\\"),
        with_field(b'"temperature": 0.10000000000000000555111512312578270211815834045410156250'),
        with_field(b'"temperature": 1e-00000000000000000000001'),
        with_field(b'"seed": -9223372036854775808'),
        with_field(b'"metadata": ' + b"[" * 60 + b"]" * 60),
        with_field(b'"logit_bias": {"1": 1, "2": 1}, "metadata": {"n": 1, "model": {"n": 2}}, "user": "n"'),
    ],
    ids=lambda body: repr(body[60:110]),
)
def test_what_only_looks_bad_is_served(body: bytes):
    async def main():
        async with serving(ScriptedGroup("x")) as client:
            assert (await client.post(CHAT, body)).status == 200

    asyncio.run(main())


def test_a_callers_request_id_is_replaced_when_it_is_no_plain_word():
    async def main():
        async with serving(ScriptedGroup("x")) as client:
            for given in ("a\r\nx-evil: 1", "a b", "http://10.0.0.1/", "x" * 129):
                answer = await client.get("/livez", {"x-request-id": given})
                assert answer.headers["x-request-id"].startswith("req_")
                assert "x-evil" not in answer.headers

    asyncio.run(main())
