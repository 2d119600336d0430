import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks.client import Endpoint, RawStream, closed_loop, open_loop, require_loopback
from benchmarks.load import main, parse_arguments, planned_requests, shape_of
from benchmarks.metrics import Targets, figures, parse
from benchmarks.workloads import (
    SHAPES,
    IdPrompts,
    Planned,
    Shape,
    TraceColumns,
    WordPrompts,
    arrivals,
    fixed_shape,
    read_trace,
)


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def text_event(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"text": text, "finish_reason": finish_reason}]})


def stream(*chunks: tuple[float, bytes], status: int = 200, failure: str | None = None) -> RawStream:
    return RawStream(sent_at=10.0, status=status, ended_at=20.0, chunks=list(chunks), failure=failure)


def test_times_are_those_of_the_chunks_that_completed_the_events():
    first, second = text_event("a"), text_event("b", "length")
    usage = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
    outcome = parse(stream((11.0, first[:9]), (12.0, first[9:]), (14.0, second), (15.0, usage + b"data: [DONE]\n\n")))
    assert outcome.error is None
    assert outcome.text_at == (12.0, 14.0)
    assert outcome.ttft_s == 2.0
    assert outcome.tpot_s == 1.0, "(14 - 12) / (3 - 1): tokens come from usage, not from events"
    assert (outcome.num_prompt_tokens, outcome.num_output_tokens) == (7, 3)


def test_event_split_inside_a_line_end_of_two_bytes_is_still_one_event():
    raw = text_event("a", "stop").replace(b"\n", b"\r\n")
    cut = raw.index(b"\r\n") + 1
    assert parse(stream((11.0, raw[:cut]), (12.0, raw[cut:]))).text_at == (12.0,)


def test_chat_deltas_count_as_text_and_empty_ones_do_not():
    role = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    said = event({"choices": [{"delta": {"content": "Paris"}, "finish_reason": "stop"}]})
    assert parse(stream((11.0, role), (12.0, said))).text_at == (12.0,)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (stream((11.0, b'{"error": {"code": "model_not_found"}}'), status=404), "HTTP 404: model_not_found"),
        (stream((11.0, b"<html>"), status=502), "HTTP 502: not JSON"),
        (stream((11.0, text_event("a")), (12.0, event({"error": {"code": "rank_died"}}))), "stream: rank_died"),
        (stream((11.0, text_event("a"))), "cut: no finish_reason"),
        (stream(), "no text"),
        (stream((11.0, b"data: {broken\n\n")), "stream: not JSON"),
        (stream(failure="ClientConnectorError"), "ClientConnectorError"),
    ],
)
def test_every_failure_has_a_kind(raw: RawStream, kind: str):
    assert parse(raw).error == kind


def test_goodput_counts_only_requests_within_both_targets():
    def finished(first: float, last: float) -> RawStream:
        return stream((first, text_event("a")), (last, text_event("b", "length")))

    outcomes = [parse(finished(11, 12)), parse(finished(13, 14)), parse(finished(11, 19)), parse(stream(status=500))]
    result = figures(outcomes, Targets(ttft_s=2.0, tpot_s=2.0))
    assert result["goodput_requests_per_s"] == 0.1, "one of four, in ten seconds"
    assert (result["num_requests"], result["num_completed"]) == (4, 3)
    assert result["errors"] == {"HTTP 500: not JSON": 1}
    assert result["itl_s"] == {"count": 3, "mean": 3.3333, "p50": 1.0, "p90": 6.6, "p99": 7.86, "max": 8.0}


def test_figures_of_no_requests_are_empty_not_an_error():
    assert figures([], Targets(1, 1))["ttft_s"] == {"count": 0}


def test_prompts_have_the_asked_length_and_share_the_asked_prefix():
    first, second = fixed_shape(SHAPES["C"], 2, IdPrompts(seed=1))
    assert isinstance(first.prompt, list) and isinstance(second.prompt, list)
    assert len(first.prompt) == len(second.prompt) == 950
    assert first.prompt[:900] == second.prompt[:900]
    assert first.prompt[900:] != second.prompt[900:]


def test_word_prompts_have_one_word_a_token_and_repeat_by_seed():
    one, same, other = WordPrompts(3).make(40), WordPrompts(3).make(40), WordPrompts(4).make(40)
    assert len(str(one).split()) == 40
    assert one == same != other


def test_poisson_arrivals_have_the_asked_mean_rate_and_start_at_zero():
    timed = arrivals([Planned("x", 1)] * 4000, rate_per_s=5.0, is_poisson=True, seed=0)
    assert timed[0].at_s == 0
    assert timed[-1].at_s == pytest.approx(4000 / 5, rel=0.05)
    assert [one.at_s for one in arrivals([Planned("x", 1)] * 3, 4.0, False, 0)] == [0.0, 0.25, 0.5]


def test_trace_is_read_from_csv_and_jsonl_in_order_of_arrival(tmp_path: Path):
    (tmp_path / "t.csv").write_text("when,in,out\n3000,5,2\n1000,7,1\n")
    (tmp_path / "t.jsonl").write_text('{"when": 3000, "in": 5, "out": 2}\n{"when": 1000, "in": 7, "out": 1}\n')
    for name in ("t.csv", "t.jsonl"):
        planned = read_trace(tmp_path / name, TraceColumns("when", "in", "out"), IdPrompts(0), 10, time_scale=0.001)
        assert [(one.at_s, len(one.prompt), one.num_output) for one in planned] == [(0.0, 7, 1), (2.0, 5, 2)]


def test_trace_without_the_named_columns_is_refused_with_the_row(tmp_path: Path):
    (tmp_path / "t.csv").write_text("when,in,out\n1,2,3\n")
    with pytest.raises(SystemExit, match=r"row 1 .*arrival_s"):
        read_trace(tmp_path / "t.csv", TraceColumns(), IdPrompts(0), 10)


@pytest.mark.parametrize(("text", "shape"), [("128/64", Shape(128, 64)), ("900+50/64", Shape(950, 64, 900))])
def test_shapes_are_written_as_prompt_and_output(text: str, shape: Shape):
    assert shape_of(text) == shape


@pytest.mark.parametrize("url", ["http://192.0.2.1/v1", "http://[2001:db8::1]:80/v1", "no url"])
def test_other_machines_are_refused_unless_allowed(url: str):
    with pytest.raises(SystemExit):
        require_loopback(url)


def test_this_machine_is_not_refused():
    require_loopback("http://127.0.0.1:8000/v1")
    require_loopback("http://[::1]:8000/v1")


def test_trace_and_concurrency_exclude_each_other():
    with pytest.raises(SystemExit):
        parse_arguments(["--model", "m", "--trace", "t.csv", "--concurrency", "2"])
    options = parse_arguments(["--model", "m", "--num-requests", "3", "--shape", "4/2"])
    assert options.concurrency == 1 and len(planned_requests(options)) == 3


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def with_server(handler: Handler, use: Callable[[str], Awaitable[None]]) -> None:
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        await use(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    finally:
        await runner.cleanup()


async def answer(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    response = web.StreamResponse()
    await response.prepare(request)
    for index in range(body["max_tokens"]):
        await response.write(text_event("x", "length" if index + 1 == body["max_tokens"] else None))
    await response.write(b"data: [DONE]\n\n")
    return response


def test_closed_loop_never_opens_more_streams_than_asked():
    open_now, most = 0, 0

    async def counted(request: web.Request) -> web.StreamResponse:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.005)
        try:
            return await answer(request)
        finally:
            open_now -= 1

    async def use(url: str) -> None:
        streams = await closed_loop(Endpoint(url, "m"), [Planned([1, 2], 3)] * 12, concurrency=4, max_seconds=20)
        assert [parse(one).num_output_tokens for one in streams] == [3] * 12

    asyncio.run(with_server(counted, use))
    assert most == 4


def test_time_limit_cuts_open_streams_and_counts_them():
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async def use(url: str) -> None:
        started = time.perf_counter()
        streams = await closed_loop(Endpoint(url, "m"), [Planned([1], 1)] * 2, concurrency=2, max_seconds=0.1)
        assert time.perf_counter() - started < 5
        assert [parse(one).error for one in streams] == ["not finished in time"] * 2

    asyncio.run(with_server(never, use))


def test_open_loop_sends_on_time_and_counts_what_it_may_not_send():
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return await answer(request)

    async def use(url: str) -> None:
        planned = [Planned([1], 1, at_s=0.001 * index) for index in range(4)]
        streams = await open_loop(Endpoint(url, "m"), planned, max_in_flight=2, max_seconds=20)
        errors = [parse(one).error for one in streams]
        assert errors.count("not sent: too many in flight") == 2 and errors.count(None) == 2

    asyncio.run(with_server(slow, use))


def test_command_writes_a_results_file_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    async def use(url: str) -> None:
        arguments = ["--url", url, "--model", "m", "--shape", "8/4", "--num-requests", "5", "--concurrency", "2"]
        code = await asyncio.to_thread(main, [*arguments, "--output", str(tmp_path), "--name", "self"])
        assert code == 0

    asyncio.run(with_server(answer, use))
    (path,) = tmp_path.glob("*-self.json")
    result = json.loads(path.read_text())
    assert result["result"]["num_output_tokens"] == 20
    assert result["machine"]["cores"] >= 1 and result["commit"] and result["versions"]["eagleray"]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "5 of 5 requests" in capsys.readouterr().out
