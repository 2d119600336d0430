"""Answers are the same whatever dies on the way: red if a resume loses, repeats or changes a token, a count, an end."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.gateway.config import GatewayConfig
from deployments.groups.group_search import StreamLimits
from tests.support.gateways import Answer, serving
from tests.support.mortal_groups import DEATHS, REPLY, Fate, MortalGroup

MAX_DEATHS = 5
"""In a row; a request that sees eight without getting far is taken for their cause."""


def answer_of(path: str, fate: Fate, fields: dict[str, Any], num_groups: int = 2) -> Answer:
    async def main() -> Answer:
        groups = [MortalGroup(f"group-{number}", fate) for number in range(num_groups)]
        async with serving(*groups) as client:
            answer = await (client.chat if path == "chat" else client.complete)(**fields)
        for group in groups:
            ids = [request.request_id for request in group.requests]
            assert len(set(ids)) == len(ids), "an id was used twice"
        return answer

    return asyncio.run(main())


def whole(answer: Answer) -> Any:
    body = answer.json()
    del body["id"], body["created"]
    return body


def streamed(answer: Answer) -> Any:
    """Return what the events add up to, however they were cut."""
    *events, done = answer.events()
    assert done == "[DONE]"
    assert not [event for event in events if "error" in event]
    texts, reasons, logprobs = {}, {}, {}
    for choice in (choice for event in events for choice in event["choices"]):
        index = choice["index"]
        assert index not in reasons, "an event came after the end of its choice"
        text = choice.get("text", choice.get("delta", {}).get("content")) or ""
        texts[index] = texts.get(index, "") + text
        if choice["finish_reason"]:
            reasons[index] = choice["finish_reason"]
        for name, values in (choice["logprobs"] or {}).items() if "logprobs" in choice else ():
            logprobs.setdefault((index, name), []).extend(values or [])
    return texts, reasons, logprobs, [event["usage"] for event in events if event.get("usage")]


LIVES = st.lists(st.integers(0, 30), max_size=MAX_DEATHS).filter(lambda lives: [0, 0] not in [lives[:2], lives[1:3]])
FIELDS = st.fixed_dictionaries(
    {
        "n": st.integers(1, 2),
        "seed": st.integers(0, 100),
        "max_tokens": st.integers(1, 80),
        "stop": st.sampled_from([None, "STOP", ["süß", "ß. S"], "🧀"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LIVES, min_size=2, max_size=2), FIELDS, st.booleans(), st.sampled_from(["chat", "completions"]))
def test_a_whole_answer_is_that_of_an_undisturbed_run(lives, fields, has_logprobs, path):
    if has_logprobs:
        fields |= {"logprobs": True, "top_logprobs": 2} if path == "chat" else {"logprobs": 2}
    disturbed = answer_of(path, Fate(lives), fields)
    assert disturbed.status == 200
    assert whole(disturbed) == whole(answer_of(path, Fate(), fields))


@settings(max_examples=60, deadline=None)
@given(st.lists(LIVES, min_size=2, max_size=2), FIELDS, st.booleans(), st.sampled_from(["chat", "completions"]))
def test_a_stream_adds_up_to_that_of_an_undisturbed_run(lives, fields, has_logprobs, path):
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    if has_logprobs:
        fields |= {"logprobs": True, "top_logprobs": 2} if path == "chat" else {"logprobs": 2}
    disturbed = answer_of(path, Fate(lives), fields)
    assert disturbed.status == 200
    assert streamed(disturbed) == streamed(answer_of(path, Fate(), fields))


def test_every_single_cut_point_gives_the_same_text_counts_and_end():
    fields = {"seed": 0, "max_tokens": len(REPLY.encode()) + 5}
    undisturbed = whole(answer_of("chat", Fate(), fields))
    for cut in range(61):
        assert whole(answer_of("chat", Fate([[cut]]), fields)) == undisturbed, f"cut after {cut} tokens"


def test_a_cut_after_the_last_token_and_before_the_end_is_no_reason_to_ask_another_group():
    answer = answer_of("chat", Fate([[10]]), {"seed": 0, "max_tokens": 10}, num_groups=1)
    assert answer.json()["choices"][0]["finish_reason"] == "length"


def test_resumes_and_retries_are_counted():
    async def main() -> str:
        groups = [MortalGroup(f"group-{number}", Fate([[0, 5]])) for number in range(2)]
        async with serving(*groups) as client:
            await client.chat(seed=0)
            return (await client.get("/metrics")).body.decode()

    text = asyncio.run(main())
    assert 'eagleray_request_retries_total{model="tiny",gateway="gateway"} 1.0' in text
    assert 'eagleray_stream_resumes_total{model="tiny",gateway="gateway"} 1.0' in text
    assert 'eagleray_requests_waiting_for_group{gateway="gateway"} 0.0' in text


def test_a_request_that_kills_every_group_is_given_up_and_refused_when_it_comes_again():
    async def main():
        groups = [MortalGroup(f"group-{number}", Fate([[0] * 99]), deaths=DEATHS[:1]) for number in range(2)]
        async with serving(*groups) as client:
            first = await client.chat(seed=1)
            num_attempts = sum(len(group.requests) for group in groups)
            again = await client.chat(seed=2)
            assert sum(len(group.requests) for group in groups) == num_attempts == 3
            return first, again

    for answer in asyncio.run(main()):
        assert (answer.status, answer.error["code"]) == (500, "request_quarantined")


def test_a_stream_that_nobody_goes_on_with_ends_in_an_error_event_and_without_done():
    async def main():
        group = MortalGroup("group-0", Fate([[3]]), max_requests=1)
        config = GatewayConfig(streams=StreamLimits(resume_wait_s=0.1))
        async with serving(group, config=config) as client:
            return await client.chat(seed=0, stream=True, logprobs=True)

    answer = asyncio.run(main())
    assert answer.is_complete
    *texts, error = answer.events()
    assert sum(len((text["choices"][0]["logprobs"] or {"content": []})["content"]) for text in texts) == 3
    assert error["error"]["code"] in {death.code for death in DEATHS}
    assert "no other replica group went on" in error["error"]["message"]
