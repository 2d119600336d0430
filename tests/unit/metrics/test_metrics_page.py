"""Red when a scrape is not valid, an alias differs from its metric, a caller makes labels, or copies add up wrongly."""

import asyncio
import hashlib
from collections import defaultdict

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.errors import EaglerayError
from core.progress import Progress
from deployments.gateway.config import GatewayConfig
from deployments.http.api_keys import ApiKey
from deployments.metrics import gateway_rows, group_rows
from deployments.metrics.answers import AnswerMetrics, codes, route_of
from deployments.metrics.config import MetricsConfig
from deployments.metrics.copies import CopyPage, joined
from deployments.metrics.exposition import numbers
from deployments.metrics.group_families import Group, group_values, start_ratio
from deployments.metrics.row import OTHER
from deployments.metrics.store import Distribution, Distributions, Numbers
from deployments.metrics.table import ALIASES, MAX_SERIES, ROWS, max_series
from engine.figures import EngineFigures
from engine.request import EngineLoad
from engine.request_timings import RequestTimings, StayTimes
from engine.step_times import STEP_S
from parallel.rank.messages import RankPace
from tests.support.fake_groups import ScriptedGroup, status_of_group
from tests.support.gateways import AsgiClient, announce_all, make_gateway, serving

FIGURES = EngineFigures("kv_blocks", 1, {"plan": 0.5}, [1] * (len(STEP_S) + 1), 3.0, [RankPace(0, 7, 0.7)])
LOAD = EngineLoad(2, 3, 100, 8, 2, 4, 10, 1, 30, 20, 10, figures=FIGURES)


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return every sample by name and labels, read by Prometheus' own parser."""
    found = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found[sample.name], f"{sample.name} {labels} is there twice"
            found[sample.name][labels] = sample.value
    return found


def value(found, name, **labels):
    (match,) = (v for own, v in found[name].items() if labels.items() <= dict(own).items())
    return match


class Timed(ScriptedGroup):
    """Tells where the time went, as an engine does."""

    def submit(self, request, sink):
        def timed(step):
            events = [
                msgspec.structs.replace(event, timings=RequestTimings([StayTimes(0.2, 0, 0.3, 0.4)]))
                for event in step
                if event.is_terminal
            ]
            sink(
                msgspec.structs.replace(
                    step, events=[*(e for e in step if not e.is_terminal), *events], request_ids=[], token_ids=[]
                )
            )

        return super().submit(request, timed)

    def load(self):
        return LOAD


async def scrape(client, headers=None) -> str:
    answer = await client.get("/metrics", headers)
    assert answer.status == 200, answer.body
    return answer.body.decode()


@pytest.fixture(scope="module")
def busy():
    """The samples of a gateway that has answered a few requests."""

    async def main():
        async with serving(Timed("abc")) as client:
            await client.complete()
            await client.complete(stream=True, n=2)
            await client.complete(model="invented")
            await client.get("/nowhere")
            return await scrape(client)

    return samples(asyncio.run(main()))


def test_every_row_is_in_a_scrape(busy):
    missing = []
    for row in ROWS:
        sampled = {"histogram": f"{row.name}_bucket", "summary": f"{row.name}_sum"}.get(row.kind, row.exposed_name)
        if not busy.get(sampled):
            missing.append(row.name)
    assert missing == [gateway_rows.TENANT_TOKENS.name]  # nobody had a key


def test_labels_are_those_of_the_table(busy):
    for row in ROWS:
        for suffix in ("", "_total", "_bucket", "_sum", "_count"):
            for labels in busy.get(row.name + suffix, {}):
                assert {name for name, _ in labels} - {"le"} == set(row.exposed_labels)


def test_an_alias_has_the_values_of_its_metric(busy):
    for alias in ALIASES:
        row = alias.row
        for suffix in ("", "_total", "_bucket", "_sum", "_count"):
            own = {
                tuple(sorted((alias.renamed.get(name, name), text) for name, text in labels)): number
                for labels, number in busy.get(row.name + suffix, {}).items()
            }
            assert busy.get(alias.name + suffix, {}) == own
    assert value(busy, "vllm:request_success_total", finished_reason="stop") == 3


def test_gaps_between_tokens_are_one_fewer_than_tokens_of_a_stream(busy):
    # Three choices of "abc" and the stop token, which brings no text but an end.
    assert value(busy, "eagleray_inter_token_latency_seconds_count", model="tiny") == 6


def test_phases_are_what_the_group_told(busy):
    assert value(busy, "eagleray_request_queue_seconds_sum", model="tiny") == pytest.approx(3 * 0.2)
    assert value(busy, "eagleray_request_decode_seconds_sum", model="tiny") == pytest.approx(3 * 0.4)


def test_vllm_names_can_be_left_out():
    async def main():
        async with serving(Timed("x"), config=GatewayConfig(metrics=MetricsConfig(vllm_names=False))) as client:
            return await scrape(client)

    assert "vllm" not in asyncio.run(main())


def test_a_guard_s_refusals_are_counted_by_code():
    key = ApiKey(name="team", sha256=hashlib.sha256(b"sk-a").hexdigest(), requests_per_minute=2)
    watch = ApiKey(name="prometheus", sha256=hashlib.sha256(b"sk-m").hexdigest(), scope="metrics")
    config = GatewayConfig(api_keys=(key, watch))

    async def main():
        async with serving(Timed("x"), config=config) as client:
            own, scraper = {"authorization": "Bearer sk-a"}, {"authorization": "Bearer sk-m"}
            await client.get("/v1/models")
            await client.get("/v1/models", {"authorization": "Bearer wrong"})
            await client.get("/v1/models", scraper)
            body = {"model": "tiny", "prompt": "Hi"}
            statuses = [(await client.post("/v1/completions", body, own)).status for _ in range(3)]
            return statuses, await scrape(client, scraper)

    statuses, text = asyncio.run(main())
    found = samples(text)
    assert statuses == [200, 200, 429]
    assert value(found, "eagleray_refusals_total", code="invalid_api_key", status="401") == 2
    assert value(found, "eagleray_refusals_total", code="forbidden", status="403") == 1
    assert value(found, "eagleray_refusals_total", code="rate_limit_exceeded", status="429") == 1
    assert value(found, "eagleray_tenant_tokens_total", tenant="team", type="input") == 4


@pytest.mark.parametrize(
    ("scope", "models", "opens"), [("all", (), True), ("metrics", (), True), ("api", (), False), ("all", ("m",), False)]
)
def test_who_is_limited_is_told_nothing_of_others(scope, models, opens):
    key = ApiKey(name="team", sha256="0" * 64, scope=scope, models=models)
    assert key.may_ask("/metrics") is opens
    assert key.may_ask("/v1/chat/completions") is (scope != "metrics")


def test_a_client_that_leaves_is_counted():
    async def main():
        group = Timed("")
        group.is_endless = True
        async with serving(group) as client:
            await client.call(
                "POST", "/v1/completions", {"model": "tiny", "prompt": "Hi"}, leave_when=lambda answer: True
            )
            return samples(await scrape(client))

    assert value(asyncio.run(main()), "eagleray_client_disconnects_total", reason="left") == 1


def test_callers_cannot_make_up_labels():
    answers = AnswerMetrics()
    num_series = len(answers.responses.values)
    for number in range(1000):
        answers.note(f"/v1/models/{number}", 404, "model_not_found")
        answers.note(f"/{number}", 404, "not_found")
    assert len(answers.responses.values) == num_series + 2
    assert route_of("/v1/models/x") == "/v1/models/{name}"


def test_beyond_its_bound_a_metric_counts_under_other():
    counter = Numbers.bounded(gateway_rows.TENANT_TOKENS)
    for number in range(5000):
        counter.add(f"tenant-{number}", "input")
    assert len(counter.values) == max_series(gateway_rows.TENANT_TOKENS) + 1 <= MAX_SERIES
    assert sum(counter.values.values()) == 5000
    assert counter.values[OTHER, OTHER] == 5000 - max_series(gateway_rows.TENANT_TOKENS)
    histogram = Distributions(gateway_rows.TIME_TO_FIRST_TOKEN, 2)
    for model in "abcd":
        histogram.of(model).observe(1.0)
    assert set(histogram.series) == {("a",), ("b",), (OTHER,)}


def test_a_value_on_a_limit_belongs_to_it_and_a_larger_one_to_the_next():
    distribution = Distribution((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 2.0, 2.5):
        distribution.observe(seconds)
    distribution.observe(0.5, times=3)
    assert distribution.counts == [5, 2, 1]
    assert distribution.total == pytest.approx(9.0)


def test_a_counter_is_there_before_it_has_risen():
    counter = Numbers(gateway_rows.REQUESTS_HELD, 10)
    counter.show([("m",)])
    counter.add("m", amount=2)
    counter.show([("m",)])
    assert counter.values == {("m",): 2}


def test_every_error_an_answer_can_have_has_a_code_and_a_status():
    known = codes()
    assert known["invalid_api_key"] == "401"
    assert known["queue_full"] == "429"
    assert known[EaglerayError.code] == "500"
    assert "startup_error" not in known


def test_the_queue_is_told_by_what_it_waits_for():
    values = group_values([Group(status_of_group("g"), LOAD)], ())
    queue = {reason: count for (_, _, reason), count in values[group_rows.QUEUE].items()}
    assert queue == {"rows": 0, "kv_blocks": 2, "step_tokens": 0, "preempted": 1}


def test_restarts_are_told_by_cause_and_unknown_causes_together():
    status = msgspec.structs.replace(status_of_group("g"), restarts={"rank_died": 2, "novel": 1})
    causes = {
        cause: count for (_, _, cause), count in group_values([Group(status, None)], ())[group_rows.RESTARTS].items()
    }
    assert causes["rank_died"] == 2
    assert causes[OTHER] == 1
    assert sum(causes.values()) == 3


def test_a_configured_model_without_groups_shows_none_ready():
    values = group_values([], ["m"])
    assert values[group_rows.GROUPS]["m", "ready"] == 0


def test_a_group_that_is_gone_or_not_connected_leaves_no_values():
    connected = group_values([Group(status_of_group("g"), LOAD)], ())
    unconnected = group_values([Group(status_of_group("g"), None)], ())
    assert connected[group_rows.RUNNING] and not unconnected[group_rows.RUNNING]
    assert not group_values([], ())[group_rows.STATE]


def test_start_progress_grows_from_phase_to_phase():
    phases = [[], [Progress(0, "connect", 1, 1)], [Progress(0, "load", 1, 2)], [Progress(0, "ready", 1, 1)]]
    ratios = [start_ratio(status_of_group("g", state="starting", progress=progress), 0) for progress in phases]
    assert ratios == [0.0, pytest.approx(1 / 3), pytest.approx(0.5), 1.0]
    assert start_ratio(status_of_group("g", state="ready"), 0) == 1.0


def test_one_scrape_has_the_requests_of_every_copy_and_each_group_once():
    async def main():
        group = Timed("abc")
        pages: list[CopyPage] = []

        async def ask_copies():
            return [msgspec.msgpack.decode(msgspec.msgpack.encode(page), type=CopyPage) for page in pages]

        copies = [make_gateway([group], name=f"copy-{number}", ask_copies=ask_copies) for number in range(2)]
        for number, copy in enumerate(copies):
            await announce_all(copy, [group])
            for _ in range(number + 1):
                assert (await AsgiClient(copy.asgi_app()).complete()).status == 200
        found = []
        for copy in copies:
            pages[:] = [one.metrics_page() for one in copies]
            found.append(samples(await scrape(AsgiClient(copy.asgi_app()))))
        for copy in copies:
            await copy.close()
        return found

    for found in asyncio.run(main()):
        assert value(found, "eagleray_requests_total", gateway="copy-0", model="tiny", operation="text_completion") == 1
        assert value(found, "eagleray_requests_total", gateway="copy-1", model="tiny", operation="text_completion") == 2
        assert value(found, "gen_ai_server_time_to_first_token_seconds_count", gateway="copy-1") == 2
        assert value(found, "vllm:num_requests_running", model_name="tiny") == 2
        assert value(found, "eagleray_gateway_copies") == 2


def test_groups_are_shown_as_the_copy_sees_them_that_knows_most():
    groups = numbers(group_rows.RUNNING, {("m", "g"): 1}, {})
    young, old = CopyPage("a", [], [], 0), CopyPage("b", [], [groups], 1)
    text = joined(young, [young, old]).decode()
    assert groups.samples in text
    assert "eagleray_gateway_copies 2.0" in text
