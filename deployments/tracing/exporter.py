"""Where spans go: OTLP over HTTP. Serve calls `span_processors` in every proxy and replica if a config names it:

    tracing_config:
      enabled: true
      exporter_import_path: deployments.tracing.exporter:span_processors
      sampling_ratio: 0.01

The collector is named by OpenTelemetry's own variables, OTEL_EXPORTER_OTLP_ENDPOINT before all.
"""

import importlib.util
import os
from typing import TYPE_CHECKING

from core.errors import StartupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from ray.serve.schema import TracingConfig

EXPORTER = "deployments.tracing.exporter:span_processors"
"""What `exporter_import_path` is to be."""
_PACKAGE = "opentelemetry.exporter.otlp.proto.http"
_SERVICE_NAME_VARIABLE = "OTEL_SERVICE_NAME"


class TracingUnavailable(StartupError):
    """Traces are asked for, and a package for them is not installed."""


def require_exporter() -> None:
    """Raise TracingUnavailable unless spans can be exported from this machine."""
    try:
        is_found = importlib.util.find_spec(_PACKAGE) is not None
    except ModuleNotFoundError:  # of a parent package
        is_found = False
    if not is_found:
        raise TracingUnavailable(
            f"tracing_config is on, and the Python package {_PACKAGE} is not installed here; "
            "pip install 'eagleray[tracing]' on every node, or remove tracing_config"
        )


def proxy_environment(tracing: "TracingConfig | None") -> dict[str, str]:
    """Return variables with which Serve's proxies trace as `tracing` says; Ray's processes must start with them.

    Serve 2.60 hands its `tracing_config` to replicas only. Without spans of the proxy there are none of Serve's at all,
    and the gateway's hang directly under the client's.
    """
    if tracing is None or not tracing.enabled:
        return {}
    return {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": tracing.exporter_import_path,
        "RAY_SERVE_TRACING_SAMPLING_RATIO": str(tracing.sampling_ratio),
    }


def span_processors() -> "list[SpanProcessor]":
    """Return what Serve gives every span to. Raises TracingUnavailable."""
    require_exporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Serve makes its provider right after this call, without a resource; the provider reads this.
    os.environ.setdefault(_SERVICE_NAME_VARIABLE, "eagleray")
    return [BatchSpanProcessor(OTLPSpanExporter())]
