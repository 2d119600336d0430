"""How traces are switched on: red if a missing package is found late, or the config we ship has no such exporter."""

import importlib.util
import sys
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from ray._common.utils import import_attr

from core.errors import InvalidConfig
from deployments.applications import read_config
from deployments.tracing import request_trail
from deployments.tracing.exporter import EXPORTER, TracingUnavailable, proxy_environment, span_processors

CONFIG = Path("configs/tracing.yaml")


@pytest.fixture
def no_exporter(monkeypatch):
    """The `tracing` extra is not installed."""
    find_spec = importlib.util.find_spec

    def find(name, *args):
        return None if name.startswith("opentelemetry.exporter") else find_spec(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_serve_gets_one_processor_that_sends_to_the_endpoint_of_the_standard_variable(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    (processor,) = import_attr(EXPORTER)()
    assert isinstance(processor, BatchSpanProcessor)
    assert processor.span_exporter._endpoint == "http://127.0.0.1:1/v1/traces"
    provider = TracerProvider()
    assert provider.resource.attributes["service.name"] == "eagleray"
    processor.shutdown()


def test_a_service_name_of_the_operators_own_is_kept(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat-eu")
    for processor in span_processors():
        processor.shutdown()
    assert TracerProvider().resource.attributes["service.name"] == "chat-eu"


def test_without_the_package_a_config_with_tracing_is_refused_before_anything_starts(no_exporter):
    with pytest.raises(InvalidConfig, match=r"pip install 'eagleray\[tracing\]'"):
        read_config(CONFIG)


def test_without_the_package_the_exporter_says_what_to_install(no_exporter):
    with pytest.raises(TracingUnavailable, match="tracing_config is on"):
        span_processors()


def test_without_tracing_the_package_is_not_missed(no_exporter):
    read_config(Path("configs/quickstart.yaml"))


def test_the_config_we_ship_has_this_exporter():
    tracing = read_config(CONFIG).tracing_config
    assert tracing is not None
    assert (tracing.enabled, tracing.exporter_import_path) == (True, EXPORTER)


def test_a_gateway_follows_requests_only_where_serve_has_set_up_tracing(monkeypatch):
    assert request_trail.serve_trails()._tracer is None
    monkeypatch.setattr(trace, "get_tracer_provider", TracerProvider)
    assert request_trail.serve_trails()._tracer is not None


def test_a_gateway_needs_no_opentelemetry_to_serve(monkeypatch):
    for name in ("opentelemetry", "deployments.tracing.serve_tracer"):
        monkeypatch.setitem(sys.modules, name, None)
    assert request_trail.serve_trails()._tracer is None


def test_proxies_are_told_of_traces_by_variables_and_of_none_if_there_are_none():
    tracing = read_config(CONFIG).tracing_config
    assert proxy_environment(tracing) == {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": EXPORTER,
        "RAY_SERVE_TRACING_SAMPLING_RATIO": "1.0",
    }
    assert proxy_environment(tracing.model_copy(update={"enabled": False})) == proxy_environment(None) == {}
