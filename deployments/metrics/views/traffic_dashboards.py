"""What callers see: dashboards of traffic and of each model's service level."""

from deployments.metrics import gateway_rows as gateway
from deployments.metrics import group_rows as group
from deployments.metrics.views.panels import (
    MODEL,
    Dashboard,
    Panel,
    Section,
    Target,
    mean,
    most,
    quantile,
    quantiles,
    rate,
    ratio,
    total,
)

_BY_MODEL = "{{model}}"
_BY_GROUP = "{{group}}"
_ANSWERED = 'route=~"/v1/(chat/)?completions"'
_FAILED = f'{_ANSWERED},status=~"5.."'

OVERVIEW = Dashboard(
    "overview",
    "eagleray: overview",
    (
        Section(
            "Now",
            (
                Panel(
                    "Groups ready",
                    "short",
                    (Target(total(group.GROUPS, "model", f'{MODEL},state="ready"'), _BY_MODEL),),
                    "Replica groups that take work. 0: the model is not served.",
                    "stat",
                ),
                Panel(
                    "Requests open",
                    "short",
                    (Target(total(gateway.REQUESTS_OPEN), "open"),),
                    "Over all gateway copies.",
                    "stat",
                ),
                Panel(
                    "Waiting for a group",
                    "short",
                    (Target(total(gateway.REQUESTS_WAITING_FOR_GROUP), "waiting"),),
                    "Held because no group can take them; should be 0.",
                    "stat",
                ),
                Panel("Gateway copies", "short", (Target(total(group.COPIES), "copies"),), kind="stat"),
            ),
        ),
        Section(
            "Traffic",
            (
                Panel(
                    "Requests",
                    "reqps",
                    (Target(rate(gateway.REQUESTS, "model, status", MODEL), "{{model}} {{status}}"),),
                ),
                Panel(
                    "Tokens",
                    "tps",
                    (Target(rate(gateway.TOKENS, "model, type", MODEL), "{{model}} {{type}}"),),
                    "cached_input is the part of input that a prefix cache had.",
                ),
                Panel(
                    "HTTP answers",
                    "reqps",
                    (Target(rate(gateway.RESPONSES, "route, status"), "{{route}} {{status}}"),),
                ),
                Panel(
                    "Share of 5xx answers",
                    "percentunit",
                    (
                        Target(
                            ratio(
                                rate(gateway.RESPONSES, where=_FAILED) + " or vector(0)",
                                rate(gateway.RESPONSES, where=_ANSWERED),
                            ),
                            "failed",
                        ),
                    ),
                    "Of generation requests; those that were refused for load (503) are among them.",
                ),
            ),
        ),
        Section(
            "Speed",
            (
                Panel("Time to first token", "s", quantiles(gateway.TIME_TO_FIRST_TOKEN)),
                Panel("Time between tokens", "s", quantiles(gateway.INTER_TOKEN_LATENCY)),
                Panel(
                    "KV blocks in use",
                    "percentunit",
                    (Target(most(group.KV_USAGE, "model", MODEL), _BY_MODEL),),
                    "The fullest group of each model.",
                ),
                Panel(
                    "Requests in groups",
                    "short",
                    (
                        Target(total(group.RUNNING, "model", MODEL), "running {{model}}"),
                        Target(total(group.WAITING, "model", MODEL), "waiting {{model}}"),
                    ),
                ),
            ),
        ),
    ),
)

MODEL_SLO = Dashboard(
    "model",
    "eagleray: model and service level",
    (
        Section(
            "What callers see",
            (
                Panel("Time to first token", "s", quantiles(gateway.TIME_TO_FIRST_TOKEN)),
                Panel(
                    "Time between tokens",
                    "s",
                    quantiles(gateway.INTER_TOKEN_LATENCY),
                    "One value a token, pauses of resumed streams included.",
                ),
                Panel(
                    "Time per output token",
                    "s",
                    quantiles(gateway.TIME_PER_OUTPUT_TOKEN),
                    "One value a completion: its mean pace.",
                ),
                Panel("Request duration", "s", quantiles(gateway.REQUEST_DURATION)),
            ),
        ),
        Section(
            "Where the time goes",
            (
                Panel("Queue in the group", "s", quantiles(gateway.QUEUE_TIME)),
                Panel("Prefill", "s", quantiles(gateway.PREFILL_TIME)),
                Panel("Decode", "s", quantiles(gateway.DECODE_TIME)),
                Panel(
                    "Mean seconds of a request by phase",
                    "s",
                    tuple(
                        Target(mean(row, "model", MODEL), f"{name} {{{{model}}}}")
                        for name, row in (
                            ("queue", gateway.QUEUE_TIME),
                            ("prefill", gateway.PREFILL_TIME),
                            ("decode", gateway.DECODE_TIME),
                        )
                    ),
                    is_stacked=True,
                ),
            ),
        ),
        Section(
            "What is asked",
            (
                Panel(
                    "Tokens of a request, p50 and p99",
                    "short",
                    tuple(
                        Target(
                            quantile(share, gateway.TOKEN_USAGE, "model, type"),
                            f"p{100 * share:g} {{{{model}}}} {{{{type}}}}",
                        )
                        for share in (0.5, 0.99)
                    ),
                ),
                Panel(
                    "Share of prompts found in prefix caches",
                    "percentunit",
                    (
                        Target(
                            ratio(
                                rate(gateway.TOKENS, "model", f'{MODEL},type="cached_input"'),
                                rate(gateway.TOKENS, "model", f'{MODEL},type="input"'),
                            ),
                            _BY_MODEL,
                        ),
                    ),
                ),
                Panel(
                    "Completions by what ended them",
                    "reqps",
                    (Target(rate(gateway.CHOICES, "model, finish_reason", MODEL), "{{model}} {{finish_reason}}"),),
                ),
                Panel(
                    "Tokens by tenant",
                    "tps",
                    (Target(f"topk(10, {rate(gateway.TENANT_TOKENS, 'tenant')}) or vector(0)", "{{tenant}}"),),
                    "The ten busiest tenants; callers without keys are not counted.",
                ),
            ),
        ),
    ),
)
