"""Red when health lies, a route is open without a key, a metric vanishes, or a bug shows its insides to a client."""

import asyncio
import hashlib
import logging
import threading

import pytest
from starlette.types import Receive, Scope, Send

from core.errors import CheckpointError, ErrorInfo, NotReady, QueueFull, RankDied
from core.progress import Progress
from deployments.gateway.config import GatewayConfig
from deployments.http.auth import OPEN_PATHS
from deployments.http.boundary import IngressBoundary
from deployments.live.assets import load_assets
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.fake_clock import FakeClock
from tests.support.fake_groups import MAX_MODEL_LEN, ScriptedGroup, status_of_group
from tests.support.gateways import AsgiClient, announce_all, make_gateway, serving


def test_livez_is_alive_without_any_model():
    async def main():
        async with serving() as client:
            answer = await client.get("/livez")
        assert (answer.status, answer.json()) == (200, {"status": "alive"})

    asyncio.run(main())


def test_readyz_is_200_once_a_token_was_generated(run):
    async def main():
        group = ScriptedGroup("x")
        async with serving(group, config=GatewayConfig(models=("tiny",))) as client:
            answer = await client.get("/readyz")
        assert answer.status == 200
        report = answer.json()["models"][0]
        assert (report["is_ready"], report["groups"][0]["state"]) == (True, "ready")
        assert [request.sampling.max_tokens for request in group.requests] == [1]

    run(main())


def test_readyz_shows_the_progress_of_every_rank_while_a_model_loads():
    async def main():
        gateway = make_gateway([], GatewayConfig(models=("tiny", "other")))
        client = AsgiClient(gateway.asgi_app())
        progress = [Progress(0, "load", 1, 4, "model-00001.safetensors"), Progress(1, "connect", 1, 1)]
        gateway.announce(status_of_group("group-1", state="starting", progress=progress))
        answer = await client.get("/readyz")
        await gateway.close()
        assert answer.status == 503
        tiny, other = answer.json()["models"]
        assert other["reason"] == "no replica group has announced itself"
        assert tiny["groups"][0]["progress"] == [
            {"rank": 0, "phase": "load", "percent": 25, "detail": "model-00001.safetensors"},
            {"rank": 1, "phase": "connect", "percent": 100, "detail": ""},
        ]
        assert "secret" not in answer.body.decode()

    asyncio.run(main())


def test_readyz_says_why_a_group_failed():
    async def main():
        gateway = make_gateway([], GatewayConfig(models=("tiny",)))
        error = ErrorInfo.of(RankDied("rank 1 was killed"))
        gateway.announce(status_of_group("group-1", state="restarting", error=error))
        answer = await AsgiClient(gateway.asgi_app()).get("/readyz")
        await gateway.close()
        assert answer.json()["models"][0]["groups"][0]["error"] == "rank 1 was killed"

    asyncio.run(main())


def test_one_probe_serves_all_who_ask_and_is_good_for_a_moment():
    async def main():
        clock, group = FakeClock(), ScriptedGroup("x")
        async with serving(group, clock=clock) as client:
            answers = await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
            assert {answer.status for answer in answers} == {200}
            assert len(group.requests) == 1
            clock.advance(2)
            await client.get("/readyz")
            assert len(group.requests) == 2

    asyncio.run(main())


def test_traffic_is_proof_enough():
    async def main():
        group = ScriptedGroup("x")
        async with serving(group, clock=FakeClock()) as client:
            await client.chat()
            assert (await client.get("/readyz")).status == 200
        assert len(group.requests) == 1

    asyncio.run(main())


def test_a_group_that_says_ready_but_generates_nothing_is_not_ready():
    async def main():
        group = ScriptedGroup("")
        group.is_endless = True
        async with serving(group, config=GatewayConfig(probe_timeout_s=0.01)) as client:
            answer = await client.get("/readyz")
        assert answer.status == 503
        assert "no token was generated" in answer.json()["models"][0]["reason"]
        assert group.open == {}

    asyncio.run(main())


@pytest.mark.parametrize(("refusal", "status"), [(QueueFull("busy"), 200), (NotReady("restarting"), 503)])
def test_a_busy_group_is_ready_and_a_restarting_one_is_not(refusal, status):
    async def main():
        group = ScriptedGroup()
        group.refusal = refusal
        async with serving(group) as client:
            assert (await client.get("/readyz")).status == status

    asyncio.run(main())


def test_models_are_listed_with_their_context():
    async def main():
        async with serving(ScriptedGroup()) as client:
            listed = (await client.get("/v1/models")).json()
            one = (await client.get("/v1/models/tiny")).json()
            missing = await client.get("/v1/models/org/none")
        assert listed == {"data": [one], "object": "list"}
        assert (one["id"], one["object"], one["max_model_len"]) == ("tiny", "model", MAX_MODEL_LEN)
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")

    asyncio.run(main())


def test_an_expected_model_that_is_not_there_yet_is_503_not_404():
    async def main():
        async with serving(config=GatewayConfig(models=("tiny",))) as client:
            answer = await client.chat()
        assert (answer.status, answer.error["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"] == "2"

    asyncio.run(main())


def test_a_tokenizer_that_cannot_be_loaded_shows_in_readyz():
    def load(source: str, revision: str | None) -> ByteTokenizer:
        raise CheckpointError("tokenizer.json is missing")

    async def main():
        group = ScriptedGroup()
        gateway = make_gateway([group], GatewayConfig(models=("tiny",)), load=load)
        client = AsgiClient(gateway.asgi_app())
        gateway.announce(group.status())
        while gateway._catalog.failure("tiny") is None:
            await asyncio.sleep(0.001)
        assert (await client.chat()).status == 503
        report = (await client.get("/readyz")).json()["models"][0]
        await gateway.close()
        assert report["reason"] == "tokenizer.json is missing"

    asyncio.run(main())


KEY = "sk-correct-horse"
KEYED = GatewayConfig(api_keys_sha256=(hashlib.sha256(KEY.encode()).hexdigest(), "0" * 64))
EVERY_ROUTE = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/live/feed"),
]
PAGE_FILES = frozenset(load_assets())
"""Of the live page, which carries no data."""


def test_every_route_is_in_the_table_of_this_test():
    app = make_gateway([]).asgi_app()
    assert {route.path.replace("{name:path}", "tiny") for route in app.routes} == (
        {path for _, path in EVERY_ROUTE} | PAGE_FILES
    )


@pytest.mark.parametrize(("method", "path"), [*EVERY_ROUTE, ("GET", "/nowhere"), ("GET", "//livez"), ("GET", "/LIVEZ")])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": KEY}])
def test_every_route_but_health_needs_a_key(method, path, headers):
    async def main():
        async with serving(ScriptedGroup("x"), config=KEYED) as client:
            answer = await client.call(method, path, headers=headers)
        if path in OPEN_PATHS:
            assert answer.status == 200
        else:
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.error["type"] == "authentication_error"

    asyncio.run(main())


def test_a_known_key_opens_every_route():
    async def main():
        async with serving(ScriptedGroup("x"), config=KEYED) as client:
            for method, path in EVERY_ROUTE:
                answer = await client.call(method, path, headers={"authorization": f"bearer {KEY}"})
                assert answer.status in (200, 400)

    asyncio.run(main())


def test_metrics_count_requests_tokens_and_times_and_show_group_load():
    async def main():
        group = ScriptedGroup("abc")
        group.num_cached_tokens = 1
        async with serving(group) as client:
            await client.complete()
            await client.complete(stream=True)
            await client.complete(n=99)
            await client.complete(model="invented-by-a-caller")
            return (await client.get("/metrics")).body.decode()

    text = asyncio.run(main())
    requests = 'eagleray_requests_total{model="%s",operation="text_completion",status="%s",gateway="gateway"} %s'
    for line in (
        requests % ("tiny", "ok", 2.0),
        requests % ("unknown", "invalid_request", 1.0),
        requests % ("unknown", "model_not_found", 1.0),
        'eagleray_requests_open{operation="text_completion",gateway="gateway"} 0.0',
        'eagleray_tokens_total{model="tiny",type="input",gateway="gateway"} 4.0',
        'eagleray_tokens_total{model="tiny",type="cached_input",gateway="gateway"} 2.0',
        'eagleray_tokens_total{model="tiny",type="output",gateway="gateway"} 8.0',
        'gen_ai_server_time_to_first_token_seconds_count{model="tiny",gateway="gateway"} 2.0',
        'gen_ai_server_time_per_output_token_seconds_count{model="tiny",gateway="gateway"} 2.0',
        'vllm:num_requests_running{model_name="tiny",group="group-1"} 0.0',
        'vllm:kv_cache_usage_perc{model_name="tiny",group="group-1"} 0.25',
        'vllm:generation_tokens_total{model_name="tiny",group="group-1"} 30.0',
        'eagleray_op_tier{model="tiny",group="group-1",op="linear",tier="torch",detail="plain"} 1.0',
    ):
        assert line in text
    assert "invented-by-a-caller" not in text


@pytest.mark.parametrize(
    ("given", "is_kept"), [("my-id.1", True), ("", False), ("x" * 200, False), ("a b", False), ("é", False)]
)
def test_a_harmless_request_id_is_returned_and_any_other_replaced(given, is_kept):
    async def main():
        async with serving() as client:
            return await client.get("/livez", headers={"x-request-id": given} if given.isascii() else {})

    request_id = asyncio.run(main()).headers["x-request-id"]
    assert (request_id == given) is is_kept
    assert request_id


def test_access_is_logged_in_one_line_without_the_prompt(caplog, monkeypatch):
    async def main():
        async with serving(ScriptedGroup("x")) as client:
            await client.complete(prompt="canary-5bd1", n=99)

    monkeypatch.setattr(logging.getLogger("deployments"), "propagate", True)
    with caplog.at_level(logging.INFO, "deployments.http.boundary"):
        asyncio.run(main())
    (record,) = (record for record in caplog.records if record.name == "deployments.http.boundary")
    assert (record.method, record.path, record.status, record.error) == (
        "POST",
        "/v1/completions",
        400,
        "invalid_request",
    )
    assert all("canary-5bd1" not in repr(vars(record)) for record in caplog.records)


def test_a_bug_is_a_500_that_shows_an_error_id_and_nothing_else():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("0x7ff1234 insides")

    answer = asyncio.run(AsgiClient(IngressBoundary(app)).get("/"))
    assert (answer.status, answer.error["type"], answer.error["code"]) == (500, "server_error", "internal_error")
    assert "insides" not in answer.body.decode()


def test_a_bug_in_the_middle_of_a_stream_ends_it_with_an_error_event():
    class BrokenTokenizer(ByteTokenizer):
        def decoder(self, prompt_ids, skip_special_tokens=True):
            decoder = super().decoder(prompt_ids, skip_special_tokens)
            decoder.flush = lambda: 1 / 0
            return decoder

    async def main():
        async with serving(ScriptedGroup("abc"), load=lambda source, revision: BrokenTokenizer()) as client:
            return await client.chat(stream=True)

    events = asyncio.run(main()).events()
    assert events[-1]["error"]["code"] == "internal_error"
    assert "[DONE]" not in events


def test_a_long_prompt_is_tokenised_off_the_event_loop():
    threads = []

    class WatchedTokenizer(ByteTokenizer):
        def encode(self, text, add_special_tokens=True):
            threads.append(threading.current_thread() is threading.main_thread())
            return super().encode(text, add_special_tokens)[:100]

    async def main():
        async with serving(ScriptedGroup("a"), load=lambda source, revision: WatchedTokenizer()) as client:
            await client.complete(prompt="x")
            await client.complete(prompt="x" * 5000)

    asyncio.run(main())
    assert threads == [True, False]


def test_two_groups_of_one_model_share_the_work():
    async def main():
        groups = [ScriptedGroup("", "group-1"), ScriptedGroup("", "group-2")]
        for group in groups:
            group.is_endless = True
        gateway = make_gateway(groups)
        await announce_all(gateway, groups)
        client = AsgiClient(gateway.asgi_app())
        calls = [asyncio.create_task(client.complete()) for _ in range(4)]
        while sum(len(group.requests) for group in groups) < 4:
            await asyncio.sleep(0)
        assert [len(group.requests) for group in groups] == [2, 2]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert [len(group.open) for group in groups] == [0, 0]
        await gateway.close()

    asyncio.run(main())
