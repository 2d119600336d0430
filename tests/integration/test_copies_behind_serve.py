"""Gateway copies behind Serve's proxy: red if the one that is scraped does not answer for all, or a panel is empty."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from ray import serve

from deployments import app
from deployments.gateway.config import GatewayConfig
from tests.support.prometheus_server import MISSING, PrometheusServer, is_installed
from tests.support.scraped import CALLER, KEYS, SCRAPER, panel_queries
from tests.support.serve_instance import GATEWAY, model_args, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not is_installed(), reason=MISSING),
]

MODEL = "watched"
NUM_COPIES = 2
NUM_REQUESTS = 16
ANSWERED = f'eagleray_requests_total{{model="{MODEL}",status="ok"}}'


def deploy_gateway(config: GatewayConfig, num_copies: int) -> None:
    gateway = app.gateway_deployment().options(num_replicas=num_copies).bind(config)
    serve.run(gateway, name=GATEWAY, route_prefix="/")


@pytest.fixture(scope="module")
def keyed(served):
    """A served model behind two gateway copies with API keys."""
    served.deploy(MODEL, model_args("quickstart.yaml", name=MODEL))
    try:
        deploy_gateway(GatewayConfig(api_keys=KEYS), NUM_COPIES)
        wait_until(lambda: served.is_ready(MODEL), 60, "the model is ready")
        yield served
    finally:
        served.delete(MODEL)
        deploy_gateway(GatewayConfig(), 1)


@pytest.fixture(scope="module")
def prometheus(keyed, tmp_path_factory):
    """A Prometheus that has seen the copies idle, then under load."""
    prometheus = PrometheusServer(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{keyed.port}", SCRAPER)
    try:
        prometheus.wait_for(f'eagleray_kv_blocks{{model="{MODEL}"}} and on() (eagleray_gateway_copies == {NUM_COPIES})')

        def ask(number):
            body = {"model": MODEL, "prompt": f"Count from {number}", "max_tokens": 4, "ignore_eos": True}
            headers = {"authorization": f"Bearer {CALLER}"}
            return httpx.post(f"{keyed.url}/v1/completions", json=body, headers=headers, timeout=60).status_code

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(ask, range(NUM_REQUESTS))) == {200}
        prometheus.wait_for(f"sum({ANSWERED}) == {NUM_REQUESTS}")
        yield prometheus
    finally:
        prometheus.close()


def test_requests_of_every_copy_are_seen_whichever_is_scraped(prometheus):
    assert len(prometheus.query(f"sum by (gateway) ({ANSWERED})")) == NUM_COPIES
    assert prometheus.number(f"resets(sum({ANSWERED})[1m:1s])") == 0
    assert prometheus.number(f'count(vllm:generation_tokens_total{{model_name="{MODEL}"}})') == 1
    assert prometheus.number(f'sum(eagleray_inter_token_latency_seconds_count{{model="{MODEL}"}})') == 3 * NUM_REQUESTS
    assert prometheus.number(f'sum(eagleray_request_queue_seconds_count{{model="{MODEL}"}})') == NUM_REQUESTS
    assert prometheus.number(f'eagleray_rank_step_seconds_count{{model="{MODEL}",rank="0"}}') > 0
    assert prometheus.number(f'sum(eagleray_step_seconds_count{{model="{MODEL}"}})') >= 4
    (target,) = prometheus.active_targets()
    assert (target["health"], target["lastError"]) == ("up", "")


def test_no_panel_is_empty(prometheus):
    queries = panel_queries(MODEL, "1m").values()
    wait_until(lambda: prometheus.query(next(iter(queries))), 15, "rates of the load are known")
    assert [query for query in queries if not prometheus.query(query)] == []
