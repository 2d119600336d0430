"""Red when the completions wire format drifts from what OpenAI clients parse."""

import asyncio

import pytest

from engine.tokenizer import Tokenizer
from tests.support.byte_tokenizer import EOS
from tests.support.checkpoints import write_byte_tokenizer
from tests.support.fake_groups import ScriptedGroup
from tests.support.gateways import serving


def text_of(events: list[dict], index: int = 0) -> str:
    choices = [choice for event in events[:-1] for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["text"] for choice in choices)


def test_a_completion_answers_with_text_and_usage(run):
    async def main():
        group = ScriptedGroup(" there")
        async with serving(group) as client:
            body = (await client.complete()).json()
        assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
        assert body["choices"] == [{"index": 0, "text": " there", "logprobs": None, "finish_reason": "stop"}]
        assert body["usage"]["prompt_tokens"] == 2
        # OpenAI's default of this endpoint.
        assert group.requests[0].sampling.max_tokens == 16

    run(main())


def test_a_stream_gives_the_same_text_and_ends_with_a_reason(run):
    async def main():
        async with serving(ScriptedGroup(" there")) as client:
            events = (await client.complete(stream=True)).events()
        assert text_of(events) == " there"
        assert [event["choices"][0]["finish_reason"] for event in events[:-1]][-1] == "stop"
        assert events[-1] == "[DONE]"

    run(main())


@pytest.mark.parametrize(
    ("prompt", "token_ids"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([1, EOS], [[1, EOS]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_prompts_may_be_texts_or_token_ids_and_several(prompt, token_ids):
    async def main():
        group = ScriptedGroup("x")
        async with serving(group) as client:
            body = (await client.complete(prompt=prompt, n=2)).json()
        assert [request.token_ids for request in group.requests[::2]] == token_ids
        assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(token_ids)))
        assert body["usage"]["prompt_tokens"] == sum(map(len, token_ids))

    asyncio.run(main())


@pytest.mark.parametrize("is_stream", [False, True])
def test_echo_puts_the_prompt_in_front(is_stream):
    async def main():
        async with serving(ScriptedGroup("!")) as client:
            answer = await client.complete(prompt=["Hi", "Yo"], echo=True, stream=is_stream)
        if is_stream:
            assert [text_of(answer.events(), index) for index in range(2)] == ["Hi!", "Yo!"]
        else:
            assert [choice["text"] for choice in answer.json()["choices"]] == ["Hi!", "Yo!"]

    asyncio.run(main())


def test_logprobs_are_parallel_lists_with_offsets_into_the_text():
    async def main():
        async with serving(ScriptedGroup("aéb")) as client:
            whole = (await client.complete(logprobs=1)).json()["choices"][0]["logprobs"]
            events = (await client.complete(logprobs=1, stream=True)).events()
        assert whole["tokens"] == ["a", "\ufffd", "\ufffd", "b"]
        assert whole["token_logprobs"] == [-0.5] * 4
        assert whole["top_logprobs"][0] == {"a": -0.5}
        assert whole["text_offset"] == [0, 1, 1, 2]
        streamed = [event["choices"][0]["logprobs"] for event in events[:-1] if event["choices"][0]["logprobs"]]
        assert [offset for logprobs in streamed for offset in logprobs["text_offset"]] == [0, 1, 1, 2]

    asyncio.run(main())


def test_a_prompt_is_text_unless_its_sender_says_that_it_spells_control_tokens(tmp_path):
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))

    async def main():
        group = ScriptedGroup("x")
        async with serving(group, load=lambda source, revision: tokenizer) as client:
            await client.complete(prompt="<|user|>")
            await client.complete(prompt="<|user|>", parse_special=True)
            await client.chat(messages=[{"role": "user", "content": "<|user|>"}])
        return [request.token_ids for request in group.requests]

    plain, parsed, chat = asyncio.run(main())
    user = tokenizer.token_to_id("<|user|>")
    assert tokenizer.decode(plain) == "<|user|>" and user not in plain
    assert parsed == [user]
    assert chat.count(user) == 1
