"""The table: every metric, every other name for one, every label and its bound."""

import math

from deployments.metrics import gateway_rows as gateway
from deployments.metrics import group_rows as group
from deployments.metrics.row import Alias, Label, Row

ROWS: tuple[Row, ...] = (*gateway.ROWS, *group.ROWS)

LABELS: tuple[Label, ...] = (
    Label("gateway", "The copy's id in Ray Serve; a new copy has a new one.", 1),
    Label("model", "Public names of models that are served; anything else is `unknown`.", 64),
    Label("operation", "`chat`, `text_completion`.", 8),
    Label("status", "`ok`, `client_left` or an error's code; of HTTP answers, their status.", 64),
    Label("code", "Codes of the error classes in the source.", 64),
    Label("type", "Written in the source.", 4),
    Label("finish_reason", "`stop`, `length`, `abort`.", 4),
    Label("tenant", "Tenants of configured API keys; callers without keys are not counted.", 256),
    Label("route", "The gateway's routes; other paths are `other`.", 16),
    Label("reason", "Written in the source.", 4),
    Label("policy", "The configured routing policy.", 1),
    Label("why", "Written in the source.", 5),
    Label("group", "Ids of groups that are there now; one that is gone leaves no values.", 1),
    Label("rank", "0 to world size - 1.", 1024),
    Label("part", "Written in the source.", 7),
    Label("state", "Written in the source.", 5),
    Label("cause", "Codes of the errors that break a group.", 8),
    Label("op", "Operations of a model.", 32),
    Label("tier", "`torch`, `cpu`, `cuda`, an external library.", 8),
    Label("detail", "The variant a tier chose; one per operation and group.", 32),
)

MAX_SERIES = 2048
"""Of one metric in one gateway copy, whatever its labels would allow."""

_VLLM = {"model": "model_name", "finish_reason": "finished_reason"}


def _vllm(name: str, row: Row) -> Alias:
    return Alias(f"vllm:{name}", row, _VLLM)


ALIASES: tuple[Alias, ...] = (
    _vllm("num_requests_running", group.RUNNING),
    _vllm("num_requests_waiting", group.WAITING),
    _vllm("kv_cache_usage_perc", group.KV_USAGE),
    _vllm("prompt_tokens", group.PROMPT_TOKENS),
    _vllm("generation_tokens", group.GENERATED_TOKENS),
    _vllm("prefix_cache_queries", group.PROMPT_TOKENS),
    _vllm("prefix_cache_hits", group.CACHED_TOKENS),
    _vllm("num_preemptions", group.PREEMPTIONS),
    _vllm("time_to_first_token_seconds", gateway.TIME_TO_FIRST_TOKEN),
    _vllm("inter_token_latency_seconds", gateway.INTER_TOKEN_LATENCY),
    _vllm("request_time_per_output_token_seconds", gateway.TIME_PER_OUTPUT_TOKEN),
    _vllm("e2e_request_latency_seconds", gateway.REQUEST_DURATION),
    _vllm("request_queue_time_seconds", gateway.QUEUE_TIME),
    _vllm("request_prefill_time_seconds", gateway.PREFILL_TIME),
    _vllm("request_decode_time_seconds", gateway.DECODE_TIME),
    _vllm("request_success", gateway.CHOICES),
)


def label(name: str) -> Label:
    """Return the row of a label."""
    return next(one for one in LABELS if one.name == name)


def max_series(row: Row) -> int:
    """Return how many combinations of label values a gateway copy may have."""
    return min(math.prod(label(name).max_values for name in row.labels), MAX_SERIES)


def aliases_of(row: Row) -> list[Alias]:
    """Return the other names of a metric."""
    return [alias for alias in ALIASES if alias.row is row]
