"""Alert rules, each with a case in which it fires and one in which it must not: `promtool test rules` runs both."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from deployments.metrics import gateway_rows as gateway
from deployments.metrics import group_rows as group
from deployments.metrics.views.panels import quantile

Severity = Literal["page", "ticket"]

_GROUP = {"model": "m", "group": "g"}


class Case(NamedTuple):
    """Series over time, in promtool's notation, one value a minute."""

    series: Mapping[str, str]
    at: str
    """When the rule is looked at."""


class Alert(NamedTuple):
    """One rule."""

    name: str
    query: str
    lasts: str
    """How long it must hold."""
    severity: Severity
    summary: str
    action: str
    """What to look at, and what to do."""
    fires: Case
    labels: Mapping[str, str]
    """Of the alert in that case, besides the severity."""
    quiet: Case


def _series(name: str, **labels: str) -> str:
    return f"{name}{{{','.join(f'{key}={value!r}' for key, value in labels.items())}}}".replace("'", '"')


def _of(name: str, **labels: str) -> str:
    return _series(name, **(_GROUP | labels))


def _buckets(name: str, limit: str) -> dict[str, str]:
    """Return a histogram whose values are all just under `limit`, 60 a minute."""
    return {_series(f"{name}_bucket", model="m", le=le): "0+60x30" for le in (limit, "+Inf")}


def _rises(row: str, window: str, by: str = "model") -> str:
    return f"sum by ({by}) (increase({row}_total[{window}]))"


_ANSWERED = 'route=~"/v1/(chat/)?completions"'
_OK = _series(gateway.RESPONSES.exposed_name, route="/v1/completions", status="200")
_BROKEN = _series(gateway.RESPONSES.exposed_name, route="/v1/completions", status="502")
_FULL = _series(gateway.REFUSALS.exposed_name, code="queue_full", status="429")
_DENIED = _series(gateway.REFUSALS.exposed_name, code="invalid_api_key", status="401")
_ALL_ANSWERS = f"sum(rate({gateway.RESPONSES.exposed_name}{{{_ANSWERED}}}[5m]))"


def _state_lasts(name: str, state: str, lasts: str, severity: Severity, summary: str, action: str) -> Alert:
    return Alert(
        name,
        f'{group.STATE.name}{{state=~"{state}"}} == 1',
        lasts,
        severity,
        summary,
        action,
        Case({_of(group.STATE.name, state=state.partition("|")[0]): "1x30"}, "25m"),
        _GROUP | {"state": state.partition("|")[0]},
        Case({_of(group.STATE.name, state=state.partition("|")[0]): "1 0x30"}, "25m"),
    )


def _rose(name: str, row: str, severity: Severity, summary: str, action: str) -> Alert:
    return Alert(
        name,
        f"{_rises(row, '10m')} > 0",
        "0m",
        severity,
        summary,
        action,
        Case({_series(f"{row}_total", model="m"): "0x10 2x10"}, "15m"),
        {"model": "m"},
        Case({_series(f"{row}_total", model="m"): "7x30"}, "15m"),
    )


ALERTS: tuple[Alert, ...] = (
    Alert(
        "EagleraySilent",
        f"absent({group.COPIES.name})",
        "2m",
        "page",
        "No gateway answers Prometheus.",
        "Look at the gateway's /livez, at its API key for Prometheus (401, 403), and at the proxy in front of it.",
        Case({"up": "1x10"}, "5m"),
        {},
        Case({group.COPIES.name: "1x10"}, "5m"),
    ),
    Alert(
        "EaglerayGatewayCopyMissing",
        f"{group.COPIES.name} < max_over_time({group.COPIES.name}[15m])",
        "5m",
        "ticket",
        "A gateway copy that was there has not answered for five minutes.",
        "Expected after scaling down. Otherwise look at `serve status` and the log of the gateway.",
        Case({group.COPIES.name: "3x10 2x10"}, "18m"),
        {},
        Case({group.COPIES.name: "3x30"}, "18m"),
    ),
    Alert(
        "EaglerayNoReadyGroup",
        f'sum by (model) ({group.GROUPS.name}{{state="ready"}}) == 0',
        "2m",
        "page",
        "No group of {{ $labels.model }} takes work.",
        "Look at /readyz, which says why, and at the log of its groups. A model that is scaled to zero has none.",
        Case({_series(group.GROUPS.name, model="m", state="ready"): "1 0x10"}, "5m"),
        {"model": "m"},
        Case({_series(group.GROUPS.name, model="m", state="ready"): "1x10"}, "5m"),
    ),
    Alert(
        "EaglerayFailedAnswers",
        f'sum(rate({gateway.RESPONSES.exposed_name}{{{_ANSWERED},status=~"5.."}}[5m])) / {_ALL_ANSWERS} > 0.02',
        "5m",
        "page",
        "More than 2 % of the answers are 5xx.",
        "The dashboard `reliability` has the codes: not_ready wants groups, replica_failed a look at ranks.",
        Case({_OK: "0+90x30", _BROKEN: "0+10x30"}, "15m"),
        {},
        Case({_OK: "0+99x30", _BROKEN: "0+1x30"}, "15m"),
    ),
    Alert(
        "EaglerayRefusesForLoad",
        f'sum(rate({gateway.REFUSALS.exposed_name}{{code=~"queue_full|overloaded"}}[5m])) / {_ALL_ANSWERS} > 0.05',
        "10m",
        "ticket",
        "More than 5 % of the requests are refused because groups are full.",
        "Add groups, or raise max_replicas; docs/load.md says how many are needed.",
        Case({_OK: "0+90x40", _FULL: "0+10x40"}, "25m"),
        {},
        Case({_OK: "0+99x40", _FULL: "0+1x40"}, "25m"),
    ),
    Alert(
        "EagleraySlowFirstToken",
        f"{quantile(0.95, gateway.TIME_TO_FIRST_TOKEN, where='', interval='10m')} > 5",
        "10m",
        "ticket",
        "One in twenty requests for {{ $labels.model }} waits more than 5 s for its first token.",
        "The dashboard `model` tells queue from prefill. Queue: more groups. Prefill: shorter prompts, or more ranks.",
        Case(_buckets(gateway.TIME_TO_FIRST_TOKEN.name, "8.0"), "25m"),
        {"model": "m"},
        Case(_buckets(gateway.TIME_TO_FIRST_TOKEN.name, "1.0"), "25m"),
    ),
    Alert(
        "EagleraySlowTokens",
        f"{quantile(0.99, gateway.INTER_TOKEN_LATENCY, where='', interval='10m')} > 0.5",
        "10m",
        "ticket",
        "One in a hundred tokens of {{ $labels.model }} comes more than 0.5 s after the one before.",
        "The dashboard `groups` has step times: long prefills between decodes (max_prefill_chunk), or a slow rank.",
        Case(_buckets(gateway.INTER_TOKEN_LATENCY.name, "1.0"), "25m"),
        {"model": "m"},
        Case(_buckets(gateway.INTER_TOKEN_LATENCY.name, "0.1"), "25m"),
    ),
    Alert(
        "EaglerayGroupRestarts",
        f"{_rises(group.RESTARTS.name, '30m', 'model, group, cause')} > 2.5",
        "0m",
        "ticket",
        "Group {{ $labels.group }} restarted three times in half an hour: {{ $labels.cause }}.",
        "Look at the group's log and incident files; docs/reliability.md lists what kills ranks.",
        Case({_of(group.RESTARTS.exposed_name, cause="rank_died"): "0x10 1x5 2x5 4x20"}, "30m"),
        _GROUP | {"cause": "rank_died"},
        Case({_of(group.RESTARTS.exposed_name, cause="rank_died"): "0x10 1x40"}, "30m"),
    ),
    _state_lasts(
        "EaglerayGroupFailed",
        "failed",
        "2m",
        "page",
        "Group {{ $labels.group }} of {{ $labels.model }} failed and was not replaced.",
        "/readyz has its error. Ray Serve replaces it if there is room; a StartupError needs another configuration.",
    ),
    _state_lasts(
        "EaglerayGroupStuck",
        "starting|restarting",
        "20m",
        "ticket",
        "Group {{ $labels.group }} of {{ $labels.model }} has been {{ $labels.state }} for 20 minutes.",
        "The dashboard `groups` shows how far each rank is; `python -m deployments.doctor` looks for the cause.",
    ),
    Alert(
        "EaglerayKvCacheTooSmall",
        f"sum by (model, group) (rate({group.PREEMPTIONS.exposed_name}[10m])) > 0.1",
        "10m",
        "ticket",
        "Group {{ $labels.group }} keeps putting requests back for lack of KV blocks.",
        "Lower max_running, shorten contexts, give cache.memory more, or add groups.",
        Case({_of(group.PREEMPTIONS.exposed_name): "0+60x40"}, "30m"),
        _GROUP,
        Case({_of(group.PREEMPTIONS.exposed_name): "0+1x40"}, "30m"),
    ),
    _rose(
        "EaglerayStreamsGivenUp",
        gateway.STREAMS_GIVEN_UP.name,
        "page",
        "Streams of {{ $labels.model }} broke and no group went on with them.",
        "Too few groups, or streams.resume_wait_s is shorter than a group takes to heal.",
    ),
    _rose(
        "EaglerayRequestQuarantined",
        gateway.REQUESTS_QUARANTINED.name,
        "ticket",
        "Groups of {{ $labels.model }} died of a request, which is refused now.",
        "A bug in a kernel or model: the incident files of the groups have the step and the stacks.",
    ),
    Alert(
        "EaglerayKeysRefused",
        f'sum(rate({gateway.REFUSALS.exposed_name}{{code=~"invalid_api_key|forbidden"}}[5m])) > 1',
        "10m",
        "ticket",
        "More than one request a second comes with a wrong key or none.",
        "A client with an old key, or somebody who tries keys; the proxy in front knows addresses.",
        Case({_DENIED: "0+120x40"}, "25m"),
        {},
        Case({_DENIED: "0+6x40"}, "25m"),
    ),
)


class Recording(NamedTuple):
    """A query that is worked out once for all who ask."""

    name: str
    query: str


RECORDINGS = (
    Recording("model:eagleray_requests:rate5m", f"sum by (model, status) (rate({gateway.REQUESTS.exposed_name}[5m]))"),
    Recording("model:eagleray_tokens:rate5m", f"sum by (model, type) (rate({gateway.TOKENS.exposed_name}[5m]))"),
    Recording(
        "model:eagleray_ttft_seconds:p95_5m",
        quantile(0.95, gateway.TIME_TO_FIRST_TOKEN, where="", interval="5m"),
    ),
    Recording(
        "model:eagleray_itl_seconds:p99_5m",
        quantile(0.99, gateway.INTER_TOKEN_LATENCY, where="", interval="5m"),
    ),
    Recording("model:eagleray_kv_usage_ratio:max", f"max by (model) ({group.KV_USAGE.name})"),
)
