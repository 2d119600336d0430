import asyncio
import json
from collections import Counter

import aiohttp
import pytest
from aiohttp import web

from benchmarks.client import Endpoint, RawStream
from benchmarks.faults import kills, rolling
from benchmarks.faults.answers import Answer, questions
from benchmarks.faults.churn import bad_bodies, is_refusal, leave_early, send_bad_input
from benchmarks.faults.kills import Kill
from benchmarks.faults.rolling import Change, longest_pause
from benchmarks.soak import is_flat


def answer(*times: float) -> Answer:
    chunks = [(at, b'data: {"choices": [{"text": "x", "finish_reason": "length"}]}\n\n') for at in times]
    return Answer.of(0, RawStream(0.0, 200, times[-1], chunks))


def test_streams_that_waited_longest_are_the_ones_that_were_carried_elsewhere():
    found = [answer(1.0, 2.0, 4.0), answer(1.0, 2.0, 5.0), answer(1.0, 2.1, 2.2)]
    report = kills.figures([Kill("rank", 2.0, num_resumed=2, whole_again_s=3.0)], found, [answer(1.0)], questions(1))
    assert report["kill_to_resumed_s"]["count"] == 2
    assert report["kill_to_resumed_s"]["max"] == 3.0 and report["kill_to_resumed_s"]["p50"] == 2.5
    assert report["by_kind"]["rank"]["kill_to_resumed_s"]["max"] == 3.0
    assert report["by_kind"]["rank"]["kills"] == 1 and report["verdict"]["num_unequal"] == 3


def test_one_group_cannot_be_killed_or_scaled_down(capsys):
    for program in (kills, rolling):
        with pytest.raises(SystemExit):
            program.parse_arguments(["--groups", "1"])
        assert "--groups must be 2 or more, got 1" in capsys.readouterr().err


def test_pauses_outside_a_change_are_not_its_own():
    found = [answer(1.0, 9.0, 10.0), answer(19.0, 20.5, 40.0), answer(50.0, 99.0)]
    assert longest_pause(Change("update", 10.0, 0, started_s=9.5, ended_s=20.0), found) == 1.5


def test_soak_is_not_flat_if_anything_grew_is_held_or_went_wrong():
    verdict = {"errors": {}, "num_unequal": 0}
    sound = {"verdict": verdict, "busy_after_quiesce": {}, "processes": [{"grew": []}], "bad_input_not_refused": 0}
    assert is_flat(sound)
    for change in (
        {"verdict": verdict | {"errors": {"cut": 1}}},
        {"verdict": verdict | {"num_unequal": 1}},
        {"busy_after_quiesce": {"vllm:num_requests_running": {"": 1.0}}},
        {"processes": [{"grew": ["threads from 3 to 9"]}]},
        {"processes": []},
        {"bad_input_not_refused": 1},
    ):
        assert not is_flat(sound | change)


def test_only_client_errors_are_refusals():
    assert [is_refusal(status) for status in (400, 429, 200, 500, "ServerDisconnectedError")] == [True, True] + [
        False
    ] * 3


def test_churning_callers_leave_and_count_what_they_are_told():
    bodies: list[bytes] = []
    has_left = asyncio.Event()

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        try:
            is_sound = json.loads(body).get("stream") is True
        except (ValueError, AttributeError, RecursionError):
            is_sound = False
        if is_sound:
            await has_left.wait()
        else:
            bodies.append(body)
        return web.json_response({}, status=400)

    async def scenario() -> tuple[Counter, int]:
        app = web.Application()
        app.router.add_post("/v1/completions", complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint = Endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "m")
        turns = iter(range(6))
        async with aiohttp.ClientSession() as session:
            statuses = await send_bad_input(session, endpoint, lambda: len(bodies) >= 5, seed=1)
            left = await leave_early(session, endpoint, questions(2), lambda: next(turns) >= 1, seed=1)
        has_left.set()
        await runner.cleanup()
        return statuses, left

    statuses, left = asyncio.run(scenario())
    assert statuses == {400: 5} and left == 1
    assert set(bodies) <= set(bad_bodies("m"))
