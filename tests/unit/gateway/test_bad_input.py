"""Red when bad input gets a wrong status, a body that is not OpenAI's, an echo, a traceback, or much of our time."""

import asyncio
import json
import time

import pytest

from deployments.gateway.config import GatewayConfig, HttpLimits
from tests.support.fake_groups import MAX_MODEL_LEN, ScriptedGroup
from tests.support.gateways import Answer, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Hi"}


def ask(path: str, body: bytes | dict, method: str = "POST", headers: dict[str, str] | None = None) -> Answer:
    """Ask a fresh gateway; fails unless no request reached the group and it took no time to speak of."""

    async def main() -> Answer:
        group = ScriptedGroup("x")
        async with serving(group) as client:
            started_s = time.thread_time()
            answer = await client.call(method, path, body, headers)
            assert time.thread_time() - started_s < 1
            assert group.requests == []
            return answer

    return asyncio.run(main())


def chat_body(**fields) -> dict:
    return {"model": "tiny", "messages": [USER], **fields}


BAD_FIELDS = [
    ({"n": "3"}, "n"),
    ({"n": True}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**9}, None),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"seed": "x"}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"260": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"stop_token_ids": [260]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
    ({"priority": -1}, "priority"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"what": True}}, "stream_options"),
    ({"model": 3}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [USER] * 2049}, "messages"),
    ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [USER, {"content": "Hi"}]}, "messages[1].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [USER, {"role": "assistant", "content": "I"}]}, "messages"),
]

UNSUPPORTED = [
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
    {"functions": [{"name": "f"}]},
    {"response_format": {"type": "json_object"}},
    {"modalities": ["text", "audio"]},
    {"audio": {"voice": "alloy"}},
    {"web_search_options": {}},
    {"best_of": 2},
    {"best_of": True},
    {"messages": [{"role": "tool", "content": "3", "tool_call_id": "c"}]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}]},
]

HARMLESS = [
    {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True},
    {"tools": [], "tool_choice": "auto"},
    {"tools": [{"type": "function"}], "tool_choice": "none"},
    {"response_format": {"type": "text"}, "modalities": ["text"], "audio": None},
    {"temperature": None, "n": None, "stop": None, "seed": None, "stream": None, "logit_bias": None},
    {"top_k": -1, "seed": -5},
    {"messages": [{"role": "user", "content": "a\u0000b <|im_start|>"}]},
]


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_field_is_a_400_that_names_it(fields, param):
    answer = ask(CHAT, chat_body(**fields))
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["param"] == param


@pytest.mark.parametrize("fields", UNSUPPORTED, ids=lambda value: json.dumps(value)[:60])
def test_an_unsupported_feature_is_a_400_that_says_so(fields):
    answer = ask(CHAT, chat_body(**fields))
    assert (answer.status, answer.error["code"]) == (400, "unsupported_parameter")
    assert answer.error["param"]


@pytest.mark.parametrize("fields", HARMLESS, ids=lambda value: json.dumps(value)[:60])
def test_harmless_fields_are_accepted(fields):
    async def main():
        async with serving(ScriptedGroup("x")) as client:
            assert (await client.chat(**fields)).status == 200

    asyncio.run(main())


def test_an_unknown_field_is_refused_with_the_nearest_known_one():
    answer = ask(CHAT, chat_body(max_token=5))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unknown_parameter", "max_token")
    assert "'max_tokens'" in answer.error["message"]
    assert len(ask(CHAT, chat_body(**{"x" * 100_000: 1})).body) < 1000


def test_missing_fields_are_named():
    assert ask(CHAT, {"messages": [USER]}).error["param"] == "model"
    assert ask(CHAT, {"model": "tiny"}).error["param"] == "messages"
    assert ask(COMPLETIONS, {"model": "tiny"}).error["param"] == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [260]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [2**40]}, "prompt[0]"),
        ({"prompt": [[1, 1.5]]}, "prompt[0][1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_bad_completions_field_is_a_400_that_names_it(fields, param):
    answer = ask(COMPLETIONS, {"model": "tiny", "prompt": "Hi", **fields})
    assert (answer.status, answer.error["param"]) == (400, param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"model": "tiny"} x',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": -Infinity}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": 1e999}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "\xff": 1}',
        '{"model": "tiny"}'.encode("utf-16"),
        b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"model": "tiny", "messages": ' + b"[" * 2_000_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_not_strict_json_is_a_400(body):
    answer = ask(CHAT, body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("model", ["gpt-4", "../../etc/passwd", "", "x" * 1_000_000, "tiny\r\nx: y"])
def test_an_unknown_model_is_a_404_that_does_not_echo_it_whole(model):
    answer = ask(CHAT, chat_body(model=model))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert len(answer.body) < 500


@pytest.mark.parametrize(
    "content", ["x" * MAX_MODEL_LEN, "x" * 3000, "x" * 3_000_000], ids=["inline", "in a thread", "unread"]
)
def test_a_prompt_over_the_context_is_a_400_in_the_words_clients_look_for(content):
    answer = ask(CHAT, chat_body(messages=[{"role": "user", "content": content}]))
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert f"maximum context length is {MAX_MODEL_LEN} tokens" in answer.error["message"]


def test_prompt_and_max_tokens_together_must_fit():
    answer = ask(COMPLETIONS, {"model": "tiny", "prompt": "Hi", "max_tokens": MAX_MODEL_LEN - 1})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert f"you requested {MAX_MODEL_LEN + 1} tokens (2 in the prompt" in answer.error["message"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v2"), ("GET", "/v1"), ("POST", CHAT + "/"), ("GET", "//livez")]
)
def test_an_unknown_route_is_a_404_of_our_own(method, path):
    answer = ask(path, b"", method)
    assert (answer.status, answer.error["code"]) == (404, "not_found")


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("DELETE", "/v1/models"), ("POST", "/readyz")])
def test_a_wrong_method_is_a_405_that_says_which_are_right(method, path):
    answer = ask(path, b"", method)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"]


@pytest.mark.parametrize(
    "headers",
    [{"content-type": "text/plain"}, {"content-type": "multipart/form-data"}, {"content-encoding": "gzip"}],
)
def test_what_is_not_plain_json_is_a_415(headers):
    assert ask(CHAT, chat_body(), headers=headers).status == 415


def test_a_body_over_the_limit_is_a_413_before_it_is_read():
    answer = ask(CHAT, b"{}", headers={"content-length": str(10 * 2**20)})
    assert (answer.status, answer.error["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("headers", [{}, {"content-length": "5"}, {"content-length": "-1"}])
def test_a_body_over_the_limit_is_a_413_whatever_its_length_claims(headers):
    async def main():
        async with serving(ScriptedGroup()) as client:
            parts = [b" " * 2**20 for _ in range(10)]
            answer = await client.call("POST", CHAT, headers=headers, body_parts=parts)
        assert answer.status == 413
        # The rest was not even asked for.
        assert len(parts) == 5

    asyncio.run(main())


def test_a_body_that_does_not_arrive_in_time_is_a_408():
    async def main():
        config = GatewayConfig(limits=HttpLimits(body_timeout_s=0.01))
        async with serving(ScriptedGroup(), config=config) as client:
            answer = await client.call("POST", CHAT, body_parts=[b"{"], body_never_ends=True)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")

    asyncio.run(main())


def test_an_answer_never_repeats_the_prompt():
    secret = "canary-5bd1"
    for fields in ({"n": secret}, {"messages": [{"role": secret, "content": "x"}]}, {"stop": [secret] * 99}):
        answer = ask(CHAT, chat_body(**fields))
        assert answer.status == 400 and secret not in answer.body.decode()


def test_one_bad_message_among_many_is_reported_alone_and_at_once():
    answer = ask(CHAT, chat_body(messages=[{"role": "x"}] * 200_000))
    assert answer.status == 400
    assert len(answer.body) < 500
