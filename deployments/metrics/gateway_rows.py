"""The part of the table that a gateway copy fills: requests, tokens, streams, routing decisions.

Times to first token reach from a cached prompt on a fast GPU to a queue on the verge of refusal; gaps between tokens
from a small model's step to a stream that has moved to another group. Limits are close where targets are set.
"""

from deployments.metrics.row import Row, Unit

TTFT_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 5, 8, 15, 30, 60)
TOKEN_GAP_S = (
    0.0025,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.025,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
)
WHOLE_S = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
PHASE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
NUM_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)

_RECORD = "deployments/metrics/request_record.py"
_STREAMS = "deployments/groups/stream_counts.py"


def _times(name: str, help_text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ("model",)) -> Row:
    return Row(name, "histogram", help_text, labels, "seconds", "gateway", _RECORD, buckets)


def _count(name: str, help_text: str, labels: tuple[str, ...], unit: Unit = "requests", set_by: str = _RECORD) -> Row:
    return Row(name, "counter", help_text, labels, unit, "gateway", set_by)


TIME_TO_FIRST_TOKEN = _times(
    "gen_ai_server_time_to_first_token_seconds", "Request received to first token, one value a choice.", TTFT_S
)
INTER_TOKEN_LATENCY = _times(
    "eagleray_inter_token_latency_seconds",
    "Between two tokens of a stream as they reach the gateway, resumes included; one value a token.",
    TOKEN_GAP_S,
)
TIME_PER_OUTPUT_TOKEN = _times(
    "gen_ai_server_time_per_output_token_seconds",
    "(Request duration - time to first token) / (tokens - 1), one value a choice.",
    TOKEN_GAP_S,
)
REQUEST_DURATION = _times(
    "gen_ai_server_request_duration_seconds", "Request received to last byte.", WHOLE_S, ("model", "operation")
)
QUEUE_TIME = _times(
    "eagleray_request_queue_seconds", "Waiting in a group for a row, tokens to spare or KV blocks.", PHASE_S
)
PREFILL_TIME = _times("eagleray_request_prefill_seconds", "On a row without a token to show.", PHASE_S)
DECODE_TIME = _times("eagleray_request_decode_seconds", "On a row from the first token to the last.", PHASE_S)
TOKEN_USAGE = Row(
    "gen_ai_client_token_usage",
    "histogram",
    "Tokens of a request, by type: input, output.",
    ("model", "type"),
    "tokens",
    "gateway",
    _RECORD,
    NUM_TOKENS,
)
REQUESTS = _count(
    "eagleray_requests",
    "Finished requests; status is ok, client_left or the code of an error.",
    ("model", "operation", "status"),
)
CHOICES = _count(
    "eagleray_choices",
    "Finished completions, by what ended them: stop, length, abort.",
    ("model", "finish_reason"),
)
REQUESTS_OPEN = Row(
    "eagleray_requests_open",
    "gauge",
    "Requests this gateway is working on.",
    ("operation",),
    "requests",
    "gateway",
    _RECORD,
)
TOKENS = _count("eagleray_tokens", "Tokens, by type: input, cached_input, output.", ("model", "type"), "tokens")
TENANT_TOKENS = _count(
    "eagleray_tenant_tokens", "Tokens of callers with keys, by type: input, output.", ("tenant", "type"), "tokens"
)
RESPONSES = _count(
    "eagleray_http_responses",
    "HTTP answers of every route, by status; 499: the client had left.",
    ("route", "status"),
    set_by="deployments/http/boundary.py",
)
REFUSALS = _count(
    "eagleray_refusals",
    "Requests that ended in an error, by its code; those without a key, over a limit or for no route are among them.",
    ("code", "status"),
    set_by="deployments/http/boundary.py",
)
CLIENT_DISCONNECTS = _count(
    "eagleray_client_disconnects",
    "Clients that went away (left) or did not read (slow) before their answer was whole.",
    ("reason",),
    set_by="deployments/http/boundary.py",
)

REQUESTS_WAITING_FOR_GROUP = Row(
    "eagleray_requests_waiting_for_group",
    "gauge",
    "Requests and streams that wait for a group now, because none can take them.",
    (),
    "requests",
    "gateway",
    "deployments/groups/group_search.py",
)
REQUESTS_HELD = _count(
    "eagleray_requests_held", "Requests and streams that had to wait for a group.", ("model",), set_by=_STREAMS
)
REQUESTS_QUARANTINED = _count(
    "eagleray_requests_quarantined",
    "Requests refused or given up because groups die of them.",
    ("model",),
    set_by=_STREAMS,
)
REQUEST_RETRIES = _count(
    "eagleray_request_retries",
    "Requests sent to another group before their first token.",
    ("model",),
    set_by=_STREAMS,
)
STREAM_RESUMES = _count(
    "eagleray_stream_resumes", "Streams carried to another group.", ("model",), "streams", set_by=_STREAMS
)
STREAM_RESUME_TIME = _count(
    "eagleray_stream_resume_seconds",
    "Time that streams and requests spent between two groups.",
    ("model",),
    "seconds",
    set_by=_STREAMS,
)
STREAMS_GIVEN_UP = _count(
    "eagleray_streams_given_up",
    "Broken streams for which no group was found in time.",
    ("model",),
    "streams",
    set_by=_STREAMS,
)

ROUTER_DECISIONS = _count(
    "eagleray_router_decisions",
    "Choices between groups: only_choice, cached_prefix (most of the prompt cached), cache_passed_over (another had "
    "more), least_cost (no cache in play), refused.",
    ("policy", "why"),
    set_by="cluster/routing/decisions.py",
)
ROUTER_TOKENS = _count(
    "eagleray_router_prompt_tokens",
    "Prompt tokens routed, by what was expected: all, cached (found in the group's prefix cache).",
    ("type",),
    "tokens",
    set_by="cluster/routing/decisions.py",
)

ROWS = (
    TIME_TO_FIRST_TOKEN,
    INTER_TOKEN_LATENCY,
    TIME_PER_OUTPUT_TOKEN,
    REQUEST_DURATION,
    QUEUE_TIME,
    PREFILL_TIME,
    DECODE_TIME,
    TOKEN_USAGE,
    REQUESTS,
    CHOICES,
    REQUESTS_OPEN,
    TOKENS,
    TENANT_TOKENS,
    RESPONSES,
    REFUSALS,
    CLIENT_DISCONNECTS,
    REQUESTS_WAITING_FOR_GROUP,
    REQUESTS_HELD,
    REQUESTS_QUARANTINED,
    REQUEST_RETRIES,
    STREAM_RESUMES,
    STREAM_RESUME_TIME,
    STREAMS_GIVEN_UP,
    ROUTER_DECISIONS,
    ROUTER_TOKENS,
)
