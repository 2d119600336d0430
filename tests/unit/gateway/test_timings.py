"""`timings` of an answer: red if they are there unasked, missing when asked for, or do not add up."""

import pytest

from tests.support.engines import make_config, make_engine, tiny_spec
from tests.support.fake_groups import EngineGroup, ScriptedGroup
from tests.support.fake_ranks import FakeRankPool
from tests.support.gateways import serving

NAMES = {
    "total_s",
    "time_to_first_token_s",
    "queue_s",
    "kv_wait_s",
    "prefill_s",
    "decode_s",
    "hold_s",
    "resumes",
    "preemptions",
    "group",
}


@pytest.fixture
def group():
    ranks = FakeRankPool(vocab_size=260)
    group = EngineGroup(make_engine(ranks, config=make_config(), spec=tiny_spec(vocab_size=260)))
    yield group
    group.close()


def check(timings):
    assert set(timings) == NAMES
    assert (timings["group"], timings["resumes"], timings["preemptions"]) == ("group-1", 0, 0)
    phases = [timings[name] for name in ("queue_s", "prefill_s", "decode_s")]
    assert min(phases) >= 0 < timings["prefill_s"]
    assert sum(phases) <= timings["total_s"]
    assert 0 < timings["time_to_first_token_s"] <= timings["total_s"]


@pytest.mark.parametrize("endpoint", ["chat", "complete"])
def test_an_answer_says_where_its_time_went_if_asked(run, group, endpoint):
    async def main():
        async with serving(group) as client:
            answer = await getattr(client, endpoint)(max_tokens=8, include_timings=True)
        assert answer.status == 200
        check(answer.json()["timings"])

    run(main())


@pytest.mark.parametrize("endpoint", ["chat", "complete"])
@pytest.mark.parametrize("has_usage", [False, True])
def test_a_stream_says_it_in_its_last_event_with_the_usage_or_without(run, group, endpoint, has_usage):
    async def main():
        options = {"include_timings": True, "include_usage": has_usage}
        async with serving(group) as client:
            answer = await getattr(client, endpoint)(max_tokens=8, stream=True, stream_options=options)
        *events, closing, done = answer.events()
        assert done == "[DONE]"
        assert closing["choices"] == []
        assert ("usage" in closing) == has_usage
        check(closing["timings"])
        assert not any("timings" in event for event in events)

    run(main())


def test_the_body_field_asks_for_a_stream_as_well(run, group):
    async def main():
        async with serving(group) as client:
            answer = await client.chat(max_tokens=8, stream=True, include_timings=True)
        check(answer.events()[-2]["timings"])

    run(main())


@pytest.mark.parametrize("fields", [{}, {"include_timings": False}, {"include_timings": None}])
def test_nobody_gets_timings_unasked(run, fields):
    async def main():
        async with serving(ScriptedGroup()) as client:
            whole = await client.chat(**fields)
            stream = await client.chat(stream=True, **fields)
        assert b"timings" not in whole.body + stream.body

    run(main())


def test_a_group_that_tells_nothing_leaves_the_gateways_own_figures(run):
    async def main():
        async with serving(ScriptedGroup("Hello!")) as client:
            timings = (await client.chat(include_timings=True)).json()["timings"]
        assert (timings["queue_s"], timings["prefill_s"], timings["decode_s"]) == (0, 0, 0)
        assert timings["total_s"] >= timings["time_to_first_token_s"] > 0

    run(main())


def test_the_time_up_to_a_stop_string_counts_as_decode(run, group):
    async def main():
        async with serving(group) as client:
            free = (await client.complete(max_tokens=40, echo=False)).json()["choices"][0]["text"]
            stop = free[10:12]
            answer = (await client.complete(max_tokens=40, stop=[stop], include_timings=True)).json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert 0 < answer["timings"]["decode_s"] < answer["timings"]["total_s"]

    run(main())


@pytest.mark.parametrize("value", [1, "yes", []])
def test_a_wish_for_timings_is_a_boolean(run, value):
    async def main():
        async with serving(ScriptedGroup()) as client:
            answer = await client.chat(include_timings=value)
        assert (answer.status, answer.error["param"]) == (400, "include_timings")

    run(main())
