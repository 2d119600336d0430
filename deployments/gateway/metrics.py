"""Every metric of a gateway, in one table, and what fills them.

Names: OpenTelemetry's GenAI names as Prometheus writes them, ours as `eagleray_*`, and vLLM's names for group load,
which dashboards and autoscalers already read. Values of one gateway process; group load is what each group last
reported, so every gateway shows the same (take the maximum over gateways, not the sum).
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect

from core.errors import EaglerayError
from deployments.gateway.generation import Choice
from deployments.groups.stream_counts import StreamCounts
from deployments.groups.unbroken import UnbrokenStreams
from engine.request import EngineLoad
from parallel.ops.choice import OpChoice

_SHORT_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1, 2, 4, 8, 15, 30, 60)
_PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_WHOLE_S = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)


class MetricSpec(NamedTuple):
    """One row of the table."""

    name: str
    documentation: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


TIME_TO_FIRST_TOKEN = MetricSpec(
    "gen_ai_server_time_to_first_token_seconds", "Request received to first token.", ("model",), _SHORT_S
)
TIME_PER_OUTPUT_TOKEN = MetricSpec(
    "gen_ai_server_time_per_output_token_seconds",
    "(Request duration - time to first token) / (tokens - 1), one value a choice.",
    ("model",),
    _PER_TOKEN_S,
)
REQUEST_DURATION = MetricSpec(
    "gen_ai_server_request_duration_seconds", "Request received to last byte.", ("model", "operation"), _WHOLE_S
)
TOKEN_USAGE = MetricSpec(
    "gen_ai_client_token_usage", "Tokens of a request, by type: input, output.", ("model", "type"), _TOKENS
)
REQUESTS = MetricSpec(
    "eagleray_requests",
    "Finished requests; status is ok, client_left or an error code.",
    ("model", "operation", "status"),
)
REQUESTS_OPEN = MetricSpec("eagleray_requests_open", "Requests this gateway is working on.", ("operation",))
TOKENS = MetricSpec("eagleray_tokens", "Tokens, by type: input, cached_input, output.", ("model", "type"))

_UNKNOWN_MODEL = "unknown"
"""Names that callers invent do not become labels."""


class GroupLoad(NamedTuple):
    """A group's latest report."""

    model: str
    group_id: str
    load: EngineLoad
    ops: Sequence[OpChoice] = ()


GROUP_GAUGES: Sequence[tuple[str, str, Callable[[EngineLoad], float]]] = (
    ("vllm:num_requests_running", "Requests being computed.", lambda load: load.num_running),
    ("vllm:num_requests_waiting", "Requests waiting for room.", lambda load: load.num_waiting),
    (
        "vllm:kv_cache_usage_perc",
        "Share of KV blocks that running requests hold; 1 is all.",
        lambda load: 1 - (load.num_free_blocks + load.num_cached_blocks) / max(load.num_blocks, 1),
    ),
    ("eagleray_outstanding_tokens", "Tokens still to prefill or decode.", lambda load: load.num_outstanding_tokens),
    (
        "eagleray_predicted_wait_seconds",
        "How long a new request would wait for others before it is computed.",
        lambda load: load.wait_s,
    ),
)
GROUP_COUNTERS: Sequence[tuple[str, str, Callable[[EngineLoad], float]]] = (
    ("vllm:prompt_tokens", "Prompt tokens taken.", lambda load: load.num_prompt_tokens),
    ("vllm:generation_tokens", "Tokens generated.", lambda load: load.num_generated_tokens),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda load: load.num_cached_prompt_tokens),
    ("vllm:num_preemptions", "Requests put back to make room.", lambda load: load.num_preemptions),
    ("eagleray_engine_steps", "Engine steps.", lambda load: load.num_steps),
)
STREAM_COUNTERS: Sequence[tuple[str, str, Callable[[StreamCounts], int]]] = (
    ("eagleray_requests_held", "Requests and streams that had to wait for a group.", lambda counts: counts.num_held),
    (
        "eagleray_requests_quarantined",
        "Requests refused or given up because groups die of them.",
        lambda counts: counts.num_quarantined,
    ),
    (
        "eagleray_request_retries",
        "Requests sent to another group before their first token.",
        lambda counts: counts.num_retries,
    ),
    ("eagleray_stream_resumes", "Streams carried to another group.", lambda counts: counts.num_resumes),
    (
        "eagleray_streams_given_up",
        "Broken streams for which no group was found in time.",
        lambda counts: counts.num_given_up,
    ),
)


class GatewayMetrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self, group_loads: Callable[[], Iterable[GroupLoad]], streams: UnbrokenStreams) -> None:
        self._registry = CollectorRegistry()
        self.time_to_first_token = self._histogram(TIME_TO_FIRST_TOKEN)
        self.time_per_output_token = self._histogram(TIME_PER_OUTPUT_TOKEN)
        self.request_duration = self._histogram(REQUEST_DURATION)
        self.token_usage = self._histogram(TOKEN_USAGE)
        self.requests = Counter(REQUESTS.name, REQUESTS.documentation, REQUESTS.labels, registry=self._registry)
        self.tokens = Counter(TOKENS.name, TOKENS.documentation, TOKENS.labels, registry=self._registry)
        self.requests_open = Gauge(
            REQUESTS_OPEN.name, REQUESTS_OPEN.documentation, REQUESTS_OPEN.labels, registry=self._registry
        )
        self._registry.register(_GroupCollector(group_loads))
        self._registry.register(_StreamCollector(streams))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def request(self, operation: str) -> "RequestRecord":
        """Return a context manager that records one request, however it ends."""
        return RequestRecord(self, operation)

    def _histogram(self, spec: MetricSpec) -> Histogram:
        return Histogram(spec.name, spec.documentation, spec.labels, buckets=spec.buckets, registry=self._registry)


class RequestRecord:
    """From a request's arrival to its end; the endpoint says `started` once it knows what it runs."""

    def __init__(self, metrics: GatewayMetrics, operation: str) -> None:
        self._metrics = metrics
        self._operation = operation
        self._model = _UNKNOWN_MODEL
        self._choices: Sequence[Choice] = ()
        self._num_completions = 1
        self._received_s = 0.0

    def started(self, model: str, choices: Sequence[Choice], num_completions: int) -> None:
        """Take note of the served model and the choices, `num_completions` neighbours to a prompt."""
        self._model, self._choices, self._num_completions = model, choices, num_completions

    def __enter__(self) -> Self:
        self._received_s = time.monotonic()
        self._metrics.requests_open.labels(self._operation).inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        metrics, ended_s = self._metrics, time.monotonic()
        metrics.requests_open.labels(self._operation).dec()
        metrics.requests.labels(self._model, self._operation, _status(error)).inc()
        metrics.request_duration.labels(self._model, self._operation).observe(ended_s - self._received_s)
        for choice in self._choices:
            self._observe_times(choice, ended_s)
        if self._choices:
            self._count_tokens()

    def _observe_times(self, choice: Choice, ended_s: float) -> None:
        if choice.first_token_at_s is None:
            return
        self._metrics.time_to_first_token.labels(self._model).observe(choice.first_token_at_s - self._received_s)
        if choice.num_tokens > 1:
            per_token_s = (ended_s - choice.first_token_at_s) / (choice.num_tokens - 1)
            self._metrics.time_per_output_token.labels(self._model).observe(per_token_s)

    def _count_tokens(self) -> None:
        first_of_prompt = self._choices[:: self._num_completions]
        counts = {
            "input": sum(choice.num_prompt_tokens for choice in first_of_prompt),
            "cached_input": sum(choice.num_cached_tokens for choice in first_of_prompt),
            "output": sum(choice.num_tokens for choice in self._choices),
        }
        for kind, count in counts.items():
            self._metrics.tokens.labels(self._model, kind).inc(count)
        self._metrics.token_usage.labels(self._model, "input").observe(counts["input"])
        self._metrics.token_usage.labels(self._model, "output").observe(counts["output"])


class _GroupCollector(Collector):
    """Reads group loads when Prometheus asks, so that groups which are gone leave no stale values."""

    def __init__(self, group_loads: Callable[[], Iterable[GroupLoad]]) -> None:
        self._group_loads = group_loads

    def collect(self) -> Iterable[Metric]:
        loads = list(self._group_loads())
        for name, documentation, value in GROUP_GAUGES:
            gauge = GaugeMetricFamily(name, documentation, labels=("model_name", "group"))
            for group in loads:
                gauge.add_metric((group.model, group.group_id), value(group.load))
            yield gauge
        for name, documentation, value in GROUP_COUNTERS:
            counter = CounterMetricFamily(name, documentation, labels=("model_name", "group"))
            for group in loads:
                counter.add_metric((group.model, group.group_id), value(group.load))
            yield counter
        yield _op_tiers(loads)


class _StreamCollector(Collector):
    """Reads what became of streams when Prometheus asks."""

    def __init__(self, streams: UnbrokenStreams) -> None:
        self._streams = streams

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "eagleray_requests_waiting_for_group", "Requests and streams held now.", value=self._streams.num_held
        )
        for name, documentation, value in STREAM_COUNTERS:
            counter = CounterMetricFamily(name, documentation, labels=("model",))
            for model, counts in self._streams.counts.items():
                counter.add_metric((model,), value(counts))
            yield counter


def _op_tiers(loads: Iterable[GroupLoad]) -> Metric:
    """Return which tier runs each operation: a slow one is seen on a dashboard, not only in a log."""
    labels = ("model_name", "group", "op", "tier", "detail")
    tiers = GaugeMetricFamily("eagleray_op_tier", "1 for the tier that runs an operation on rank 0.", labels=labels)
    for group in loads:
        for choice in group.ops:
            tiers.add_metric((group.model, group.group_id, choice.op, choice.tier, choice.detail), 1)
    return tiers


def _status(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, EaglerayError):
        return error.code
    # Serve cancels the handler of a client that left.
    return "client_left" if isinstance(error, ClientDisconnect | asyncio.CancelledError) else "internal_error"
