"""Red when the chat wire format drifts from what OpenAI clients parse."""

import asyncio

import pytest

from core.errors import EaglerayError, QueueFull, ReplicaFailed
from deployments.gateway.config import GatewayConfig
from deployments.groups.group_search import StreamLimits
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.fake_groups import MAX_MODEL_LEN, ScriptedGroup
from tests.support.gateways import serving


def texts(events: list[dict], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for event in events[:-1]
        for choice in event["choices"]
        if choice["index"] == index
    )


def test_a_chat_answers_with_text_usage_and_finish_reason(run):
    async def main():
        group = ScriptedGroup("Paris.")
        group.num_cached_tokens = 4
        async with serving(group) as client:
            answer = await client.chat()
        body = answer.json()
        prompt = ByteTokenizer().chat([{"role": "user", "content": "Hi"}])
        assert (answer.status, body["object"], body["model"]) == (200, "chat.completion", "tiny")
        assert body["id"].startswith("chatcmpl-") and isinstance(body["created"], int)
        assert body["choices"] == [
            {
                "index": 0,
                "message": {"content": "Paris.", "role": "assistant", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ]
        # Six bytes and the end-of-sequence token.
        assert body["usage"] == {
            "prompt_tokens": len(prompt),
            "completion_tokens": 7,
            "total_tokens": len(prompt) + 7,
            "prompt_tokens_details": {"cached_tokens": 4},
        }
        assert group.requests[0].token_ids == prompt

    run(main())


def test_a_stream_has_the_role_first_then_text_then_the_finish_reason_then_done(run):
    async def main():
        async with serving(ScriptedGroup("Paris é")) as client:
            answer = await client.chat(stream=True)
        events = answer.events()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
        assert events[0]["choices"][0]["delta"] == {"content": "", "role": "assistant"}
        assert texts(events) == "Paris é"
        assert events[-2]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
        assert events[-1] == "[DONE]"
        assert {(e["id"], e["object"], e["created"], e["model"]) for e in events[:-1]} == {
            (events[0]["id"], "chat.completion.chunk", events[0]["created"], "tiny")
        }
        assert all("usage" not in event for event in events[:-1])

    run(main())


def test_include_usage_adds_one_event_without_choices_and_nulls_before_it(run):
    async def main():
        async with serving(ScriptedGroup("abc")) as client:
            events = (await client.chat(stream=True, stream_options={"include_usage": True})).events()
        assert events[-2]["choices"] == []
        assert events[-2]["usage"]["completion_tokens"] == 4
        assert all(event["usage"] is None for event in events[:-2])

    run(main())


def test_tokens_of_one_step_come_in_one_event(run):
    async def main():
        group = ScriptedGroup("abcdef")
        group.tokens_per_event = 3
        async with serving(group) as client:
            events = (await client.chat(stream=True)).events()
        assert [e["choices"][0]["delta"].get("content") for e in events[:-1]] == ["", "abc", "def", None]

    run(main())


def test_max_tokens_ends_with_length():
    async def main():
        async with serving(ScriptedGroup("abcdef")) as client:
            for name in ("max_tokens", "max_completion_tokens"):
                body = (await client.chat(**{name: 3})).json()
                assert body["choices"][0]["message"]["content"] == "abc"
                assert body["choices"][0]["finish_reason"] == "length"
                assert body["usage"]["completion_tokens"] == 3

    asyncio.run(main())


def test_without_max_tokens_the_rest_of_the_context_is_the_limit():
    async def main():
        group = ScriptedGroup("x")
        async with serving(group) as client:
            await client.chat()
        request = group.requests[0]
        assert request.sampling.max_tokens == MAX_MODEL_LEN - request.num_prompt_tokens

    asyncio.run(main())


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_stop_string_ends_the_text_counts_tokens_to_it_and_cancels_the_rest(run, is_stream):
    async def main():
        group = ScriptedGroup("one STOP two")
        group.is_endless = True
        async with serving(group) as client:
            options = {"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}
            answer = await client.chat(stop=["zzz", "STOP"], **options)
        if is_stream:
            events = answer.events()
            assert texts(events[:-2] + events[-1:]) == "one "
            usage = events[-2]["usage"]
        else:
            assert answer.json()["choices"][0]["message"]["content"] == "one "
            assert answer.json()["choices"][0]["finish_reason"] == "stop"
            usage = answer.json()["usage"]
        assert usage["completion_tokens"] == len("one STOP")
        assert group.cancelled == [group.requests[0].request_id]

    run(main())


def test_n_choices_have_seeds_of_their_own_and_come_with_their_index(run):
    async def main():
        group = ScriptedGroup("ab")
        async with serving(group) as client:
            whole = (await client.chat(n=3, seed=7)).json()
            events = (await client.chat(n=3, seed=7, stream=True)).events()
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
        assert [choice["message"]["content"] for choice in whole["choices"]] == ["ab"] * 3
        assert whole["usage"]["completion_tokens"] == 9
        assert whole["usage"]["prompt_tokens"] == group.requests[0].num_prompt_tokens
        assert [texts(events, index) for index in range(3)] == ["ab"] * 3
        seeds = [request.sampling.seed for request in group.requests]
        assert seeds[0] == 7 and len(set(seeds[:3])) == 3 and seeds[:3] == seeds[3:]

    run(main())


def test_a_seed_is_drawn_when_none_is_given():
    async def main():
        group = ScriptedGroup("a")
        async with serving(group) as client:
            await client.chat()
            await client.chat()
        first, second = (request.sampling.seed for request in group.requests)
        assert first != second

    asyncio.run(main())


@pytest.mark.parametrize("is_stream", [False, True])
def test_logprobs_have_token_bytes_and_alternatives(is_stream):
    async def main():
        async with serving(ScriptedGroup("é!")) as client:
            answer = await client.chat(logprobs=True, top_logprobs=2, stream=is_stream)
        if is_stream:
            choices = [event["choices"][0] for event in answer.events()[:-1]]
            content = [item for choice in choices if choice["logprobs"] for item in choice["logprobs"]["content"]]
        else:
            content = answer.json()["choices"][0]["logprobs"]["content"]
        assert [item["bytes"] for item in content] == [[0xC3], [0xA9], [ord("!")]]
        assert [item["token"] for item in content] == ["\ufffd", "\ufffd", "!"]
        assert content[2]["top_logprobs"] == [
            {"token": "!", "logprob": -0.5, "bytes": [33]},
            {"token": '"', "logprob": -1.0, "bytes": [34]},
        ]

    asyncio.run(main())


def test_text_that_line_splitters_cut_is_escaped():
    async def main():
        async with serving(ScriptedGroup("a\u2028b")) as client:
            answer = await client.chat(stream=True)
        assert "\u2028" not in answer.body.decode()
        assert texts(answer.events()) == "a\u2028b"

    asyncio.run(main())


def test_content_parts_and_the_developer_role_reach_the_template_as_plain_text():
    async def main():
        group = ScriptedGroup("a")
        parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief"}]
        messages = [{"role": "developer", "content": parts}, {"role": "user", "content": "Hi", "name": "Ann"}]
        async with serving(group) as client:
            await client.chat(messages=messages)
        expected = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
        assert group.requests[0].token_ids == ByteTokenizer().chat(expected)

    asyncio.run(main())


def test_sampling_fields_reach_the_group():
    async def main():
        group = ScriptedGroup("a")
        fields = {
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.1,
            "presence_penalty": 1,
            "frequency_penalty": -1,
            "repetition_penalty": 1.5,
            "logit_bias": {"65": 2},
            "min_tokens": 1,
            "ignore_eos": True,
            "stop_token_ids": [5],
        }
        async with serving(group) as client:
            await client.chat(**fields, max_tokens=4, priority=2)
        sampling = group.requests[0].sampling
        expected = {**fields, "logit_bias": {65: 2.0}, "stop_token_ids": (5,), "max_tokens": 4}
        assert {name: getattr(sampling, name) for name in expected} == expected
        assert group.requests[0].priority == 2

    asyncio.run(main())


def test_a_refusal_before_the_first_byte_has_a_status_and_retry_after(run):
    async def main():
        group = ScriptedGroup()
        group.refusal = QueueFull("full", retry_after_s=2.5)
        async with serving(group) as client:
            answer = await client.chat(stream=True)
        assert (answer.status, answer.headers["retry-after"]) == (429, "3")
        assert answer.error["code"] == "queue_full"

    run(main())


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_group_that_fails_before_the_first_token_gives_502_when_there_is_no_other(run, is_stream):
    async def main():
        group = ScriptedGroup("")
        group.refusal = ReplicaFailed("rank 1 died")
        async with serving(group, config=GatewayConfig(streams=StreamLimits(resume_wait_s=0))) as client:
            answer = await client.chat(stream=is_stream)
        assert answer.status == 502
        assert answer.error == {
            "message": "rank 1 died",
            "type": "server_error",
            "param": None,
            "code": "replica_failed",
        }

    run(main())


def test_a_request_that_fails_in_the_middle_ends_its_stream_with_an_error_event(run):
    async def main():
        group = ScriptedGroup("abc")
        group.error = EaglerayError("one request broke")
        async with serving(group) as client:
            answer = await client.chat(stream=True)
        events = answer.events()
        assert answer.status == 200 and answer.is_complete
        assert events[-1]["error"]["code"] == "internal_error"
        assert "[DONE]" not in events

    run(main())


def test_one_failing_choice_of_several_ends_all_of_them(run):
    async def main():
        group = ScriptedGroup("abc")
        group.error = EaglerayError("one request broke")
        async with serving(group) as client:
            answer = await client.chat(stream=True, n=3)
        assert [event for event in answer.events() if "error" in event][-1]["error"]["code"] == "internal_error"
        assert group.open == {}

    run(main())


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_frees_its_request_at_the_group(run, is_stream):
    async def main():
        group = ScriptedGroup("abc" if is_stream else "")
        group.is_endless = True
        messages = [{"role": "user", "content": "Hi"}]
        async with serving(group) as client:
            answer = await client.call(
                "POST",
                "/v1/chat/completions",
                {"model": "tiny", "messages": messages, "stream": is_stream, "n": 2},
                leave_when=lambda answer: answer.status == 200 if is_stream else True,
            )
        assert answer.is_complete is False
        assert sorted(group.cancelled) == sorted(request.request_id for request in group.requests)
        assert group.open == {}

    run(main())
