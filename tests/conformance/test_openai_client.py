"""The official OpenAI client against a gateway over a real engine; the ranks are fakes that hash tokens.

Red when the client no longer understands us, raises another type than it documents, or misses that a stream broke.
"""

import hashlib
import threading
import time

import openai
import pytest

from core.errors import QueueFull, ReplicaFailed
from deployments.gateway.config import GatewayConfig
from deployments.groups.group_search import StreamLimits
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.engines import make_config, make_engine, tiny_spec
from tests.support.fake_groups import MAX_MODEL_LEN, EngineGroup, ScriptedGroup
from tests.support.fake_ranks import FakeRankPool, expected_tokens
from tests.support.http_servers import http_gateway

ASCII = 128
"""Vocabulary of the fake ranks, so that every token is a character."""
USER = {"role": "user", "content": "Hi"}
KEY = "sk-test"
NOBODY_ELSE = GatewayConfig(streams=StreamLimits(resume_wait_s=0))
"""Does not wait for a group that might go on with a request."""


class SlowRankPool(FakeRankPool):
    """Takes 2 ms a step, so that a client can do something in the middle."""

    def collect(self, timeout_s):
        time.sleep(0.002)
        return super().collect(timeout_s)


def make_group(ranks: FakeRankPool) -> EngineGroup:
    config = make_config(model={"source": "fake", "max_model_len": MAX_MODEL_LEN})
    spec = tiny_spec(vocab_size=ByteTokenizer.vocab_size)
    return EngineGroup(make_engine(ranks, num_blocks=2000, config=config, spec=spec))


def client_of(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)


@pytest.fixture(scope="module")
def group():
    group = make_group(SlowRankPool(vocab_size=ASCII))
    yield group
    group.close()


@pytest.fixture(scope="module")
def url(group):
    config = GatewayConfig(api_keys_sha256=(hashlib.sha256(KEY.encode()).hexdigest(),))
    with http_gateway([group], config) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return client_of(url)


def expected_text(prompt_ids: list[int], num_tokens: int) -> str:
    return ByteTokenizer().decode(expected_tokens(prompt_ids, num_tokens, ASCII))


def ascii_prompt(text: str) -> list[int]:
    return ByteTokenizer().encode(text)


def test_a_completion_gives_the_engines_tokens(client):
    answer = client.completions.create(model="tiny", prompt="Hi", max_tokens=20)
    assert answer.choices[0].text == expected_text(ascii_prompt("Hi"), 20)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 20)


def test_a_streamed_completion_gives_the_same_text(client):
    stream = client.completions.create(model="tiny", prompt="Hi", max_tokens=20, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected_text(ascii_prompt("Hi"), 20)


def test_64_streams_at_once_give_what_each_gives_alone(url):
    texts: dict[str, str] = {}

    def stream(prompt: str) -> None:
        chunks = client_of(url).completions.create(model="tiny", prompt=prompt, max_tokens=20, stream=True)
        texts[prompt] = "".join(chunk.choices[0].text for chunk in chunks)

    prompts = [f"prompt {number}" for number in range(64)]
    threads = [threading.Thread(target=stream, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {prompt: expected_text(ascii_prompt(prompt), 20) for prompt in prompts}


def test_models_can_be_listed_and_shown(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "eagleray"


@pytest.mark.parametrize(
    ("kind", "status", "code", "fields"),
    [
        (openai.BadRequestError, 400, "invalid_request", {"temperature": 3}),
        (openai.BadRequestError, 400, "unknown_parameter", {"extra_body": {"what": 1}}),
        (openai.BadRequestError, 400, "context_length_exceeded", {"prompt": "x" * 1000}),
        (openai.NotFoundError, 404, "model_not_found", {"model": "gpt-4"}),
    ],
)
def test_errors_have_the_clients_own_types(client, kind, status, code, fields):
    with pytest.raises(kind) as caught:
        client.completions.create(**{"model": "tiny", "prompt": "Hi", **fields})
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_a_wrong_key_is_an_authentication_error(url):
    with pytest.raises(openai.AuthenticationError) as caught:
        client_of(url, "wrong").models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_client_that_leaves_frees_its_rows_and_blocks(client, group):
    stream = client.completions.create(model="tiny", prompt="Hi", max_tokens=190, stream=True)
    next(iter(stream))
    assert group.load().num_running == 1
    stream.close()
    deadline_s = time.monotonic() + 1
    while group.load().num_running and time.monotonic() < deadline_s:
        time.sleep(0.005)
    load = group.load()
    assert (load.num_running, load.num_waiting) == (0, 0)
    assert load.num_free_blocks + load.num_cached_blocks == load.num_blocks


def test_a_chat_streams_the_same_as_it_answers_whole():
    with http_gateway([ScriptedGroup("The capital is Paris é€.")]) as url:
        client = client_of(url)
        whole = client.chat.completions.create(model="tiny", messages=[USER])
        assert whole.choices[0].message.content == "The capital is Paris é€."
        assert whole.choices[0].message.role == "assistant"
        with client.chat.completions.stream(
            model="tiny", messages=[USER], stream_options={"include_usage": True}
        ) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.content == whole.choices[0].message.content
        assert final.choices[0].finish_reason == "stop"
        assert final.usage == whole.usage


def test_chat_logprobs_are_understood():
    with http_gateway([ScriptedGroup("ab")]) as url:
        answer = client_of(url).chat.completions.create(
            model="tiny", messages=[USER], logprobs=True, top_logprobs=2, n=2, seed=1
        )
    content = answer.choices[1].logprobs.content
    assert [(item.token, item.bytes) for item in content] == [("a", [97]), ("b", [98])]
    assert [top.token for top in content[0].top_logprobs] == ["a", "b"]


def test_overload_is_a_rate_limit_error_that_the_client_may_retry():
    group = ScriptedGroup("x")
    group.refusal = QueueFull("the queue is full", retry_after_s=1)
    with http_gateway([group]) as url, pytest.raises(openai.RateLimitError) as caught:
        client_of(url).chat.completions.create(model="tiny", messages=[USER])
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.code == "queue_full"


def test_a_group_that_breaks_in_the_middle_raises_and_is_never_a_short_answer():
    group = make_group(SlowRankPool(vocab_size=ASCII))
    try:
        with http_gateway([group], NOBODY_ELSE) as url:
            stream = client_of(url).completions.create(model="tiny", prompt="Hi", max_tokens=190, stream=True)
            chunks = iter(stream)
            next(chunks)
            group.breaks(ReplicaFailed("rank 1 was killed"))
            with pytest.raises(openai.APIError) as caught:
                list(chunks)
    finally:
        group.close()
    assert caught.value.code == "replica_failed"
    assert "rank 1 was killed" in caught.value.message


def test_a_group_that_breaks_before_the_first_token_is_an_internal_server_error():
    group = ScriptedGroup("")
    group.refusal = ReplicaFailed("rank 1 was killed")
    with http_gateway([group], NOBODY_ELSE) as url, pytest.raises(openai.InternalServerError) as caught:
        client_of(url).chat.completions.create(model="tiny", messages=[USER], stream=True)
    assert caught.value.status_code == 502
