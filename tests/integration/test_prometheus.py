"""The real Prometheus scrapes two gateway copies under load: red if a scrape, a rule, an alert or a panel is wrong."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx
import pytest

from core.errors import Draining
from deployments.gateway.config import GatewayConfig
from deployments.metrics.views.alerts import ALERTS
from tests.support.engines import make_engine
from tests.support.fake_groups import EngineGroup
from tests.support.fake_ranks import FakeRankPool
from tests.support.gateway_copies import gateway_copies
from tests.support.prometheus_server import MISSING, PrometheusServer, is_installed, promtool
from tests.support.scraped import CALLER, KEYS, SCRAPER, panel_queries

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not is_installed(), reason=MISSING),
]

MODEL = "tiny"
NUM_COPIES = 2
NUM_STREAMS = 24
NUM_TOKENS = 16
WINDOW = "30s"
ANSWERED = f'sum(eagleray_requests_total{{model="{MODEL}",status="ok"}})'
PANELS = panel_queries(MODEL, WINDOW)


class Watched(NamedTuple):
    """A served model, and the Prometheus that watches it."""

    url: str
    prometheus: PrometheusServer

    def scrape(self, key: str = SCRAPER) -> httpx.Response:
        """Ask whichever copy is next."""
        return httpx.get(f"{self.url}/metrics", headers={"authorization": f"Bearer {key}"}, timeout=20)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Iterator[Watched]:
    """Two gateway copies with API keys, one group, a Prometheus that has seen them idle, then under load."""
    engine = make_engine(FakeRankPool(vocab_size=256, world_size=2))
    config = GatewayConfig(api_keys=KEYS)
    with gateway_copies([EngineGroup(engine)], config, NUM_COPIES) as url:
        folder = tmp_path_factory.mktemp("prometheus")
        prometheus = PrometheusServer(folder, url.removeprefix("http://"), SCRAPER)
        found = Watched(url, prometheus)
        try:
            # Twice: the increase of a counter is seen from its second scrape on.
            prometheus.wait_for(f"count_over_time(eagleray_gateway_copies[{WINDOW}]) >= 2")
            load(found)
            prometheus.wait_for(f"{ANSWERED} == {NUM_STREAMS}")
            prometheus.wait_for(
                f'eagleray_group_generated_tokens_total{{model="{MODEL}"}} >= {NUM_STREAMS * NUM_TOKENS}'
            )
            yield found
        finally:
            prometheus.close()
            engine.close(Draining("the test is over"))


def load(watched: Watched) -> None:
    """Stream some answers, and be refused once for each reason."""

    def stream(number: int) -> int:
        body = {"model": MODEL, "prompt": f"Count from {number}", "max_tokens": NUM_TOKENS, "ignore_eos": True}
        headers = {"authorization": f"Bearer {CALLER}"}
        answer = httpx.post(f"{watched.url}/v1/completions", json=body | {"stream": True}, headers=headers, timeout=60)
        return answer.status_code

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(stream, range(NUM_STREAMS))) == {200}
    assert httpx.get(f"{watched.url}/v1/models").status_code == 401
    assert watched.scrape(CALLER).status_code == 200
    headers = {"authorization": f"Bearer {SCRAPER}"}
    assert httpx.get(f"{watched.url}/v1/models", headers=headers).status_code == 403


def test_promtool_accepts_the_page_but_for_the_colon_in_vllm_s_names(watched):
    said = promtool("check", "metrics", stdin=watched.scrape().text).stderr.splitlines()
    assert not [line for line in said if not (line.startswith("vllm:") and line.endswith("should not contain ':'"))]


def test_prometheus_is_let_in_by_its_key_and_nothing_else(watched):
    (target,) = watched.prometheus.active_targets()
    assert (target["health"], target["lastError"]) == ("up", "")
    assert watched.scrape("sk-wrong").status_code == 401


def test_whichever_copy_is_asked_answers_for_all(watched):
    seen = {
        watched.scrape().text.count(f'eagleray_choices_total{{model="{MODEL}",finish_reason="stop"') for _ in range(8)
    }
    assert seen == {NUM_COPIES}
    prometheus = watched.prometheus
    by_copy = prometheus.query(f'sum by (gateway) (eagleray_requests_total{{model="{MODEL}",status="ok"}})')
    assert len(by_copy) == NUM_COPIES
    assert sum(sample.value for sample in by_copy) == NUM_STREAMS
    assert all(sample.value > 0 for sample in by_copy)
    assert prometheus.number(f"resets({ANSWERED}[1m:1s])") == 0


def test_what_groups_say_is_there_once_and_agrees_with_what_gateways_counted(watched):
    prometheus = watched.prometheus
    generated = f'eagleray_group_generated_tokens_total{{model="{MODEL}"}}'
    assert prometheus.number(f"count({generated})") == 1
    streamed = prometheus.number(f'sum(eagleray_tokens_total{{model="{MODEL}",type="output"}})')
    assert streamed == NUM_STREAMS * NUM_TOKENS
    assert prometheus.number(generated) == streamed
    assert (
        prometheus.number(f'sum(eagleray_inter_token_latency_seconds_count{{model="{MODEL}"}})')
        == streamed - NUM_STREAMS
    )
    assert prometheus.number(f'sum(vllm:num_requests_running{{model_name="{MODEL}"}})') == 0


def test_every_refusal_of_the_guard_is_counted(watched):
    for code in ("invalid_api_key", "forbidden"):
        watched.prometheus.wait_for(f'sum(eagleray_refusals_total{{code="{code}"}}) >= 1')


@pytest.mark.parametrize("query", PANELS.values(), ids=PANELS)
def test_a_panel_shows_something(watched, query):
    assert watched.prometheus.query(query), query


def test_no_alert_fires_on_a_healthy_server(watched):
    found = watched.prometheus.query('ALERTS{alertstate="firing"}')
    assert not found


def test_prometheus_accepts_the_rules_and_scrape_file():
    for arguments in (
        ("check", "rules", "rules.yaml", "alerts.yaml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
    ):
        said = promtool(*arguments)
        assert said.returncode == 0, said.stdout + said.stderr


def test_every_alert_fires_when_it_should_and_only_then():
    said = promtool("test", "rules", "alerts_test.yaml")
    assert said.returncode == 0, said.stdout + said.stderr
    assert len(ALERTS) >= 10
