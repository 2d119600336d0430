"""What happens behind the gateway: dashboards of groups and ranks, of the router, of what breaks and heals."""

from deployments.metrics import gateway_rows as gateway
from deployments.metrics import group_rows as group
from deployments.metrics.views.panels import (
    GROUP,
    MODEL,
    Dashboard,
    Panel,
    Section,
    Target,
    mean,
    most,
    quantile,
    rate,
    ratio,
    rise,
    total,
)

_BY_MODEL = "{{model}}"
_BY_GROUP = "{{group}}"
_ANSWERED = 'route=~"/v1/(chat/)?completions"'
_FAILED = f'{_ANSWERED},status=~"5.."'

GROUPS = Dashboard(
    "groups",
    "eagleray: groups and ranks",
    (
        Section(
            "Work",
            (
                Panel("Running", "short", (Target(total(group.RUNNING, "group", GROUP), _BY_GROUP),)),
                Panel(
                    "Queue by reason",
                    "short",
                    (Target(total(group.QUEUE, "group, reason", GROUP), "{{group}} {{reason}}"),),
                    "What the first in the queue lacks: rows, KV blocks, or tokens to spare in a step.",
                    is_stacked=True,
                ),
                Panel(
                    "Predicted wait",
                    "s",
                    (Target(most(group.PREDICTED_WAIT, "group", GROUP), _BY_GROUP),),
                    "Of a new request; above max_wait_s it would be refused.",
                ),
                Panel(
                    "Tokens to compute", "short", (Target(total(group.OUTSTANDING_TOKENS, "group", GROUP), _BY_GROUP),)
                ),
            ),
        ),
        Section(
            "Memory",
            (
                Panel(
                    "KV blocks by state",
                    "short",
                    (Target(total(group.KV_BLOCKS, "group, state", GROUP), "{{group}} {{state}}"),),
                    is_stacked=True,
                ),
                Panel("KV use", "percentunit", (Target(most(group.KV_USAGE, "group", GROUP), _BY_GROUP),)),
                Panel(
                    "Preemptions",
                    "ops",
                    (Target(rate(group.PREEMPTIONS, "group", GROUP), _BY_GROUP),),
                    "Requests put back for lack of KV blocks; their work is done twice.",
                ),
                Panel(
                    "Prefix cache hit rate",
                    "percentunit",
                    (
                        Target(
                            ratio(rate(group.CACHED_TOKENS, "group", GROUP), rate(group.PROMPT_TOKENS, "group", GROUP)),
                            _BY_GROUP,
                        ),
                    ),
                ),
            ),
        ),
        Section(
            "Steps",
            (
                Panel("Tokens generated", "tps", (Target(rate(group.GENERATED_TOKENS, "group", GROUP), _BY_GROUP),)),
                Panel(
                    "Step time",
                    "s",
                    tuple(
                        Target(quantile(share, group.STEP_TIME, "group", GROUP), f"p{100 * share:g} {{{{group}}}}")
                        for share in (0.5, 0.99)
                    ),
                ),
                Panel(
                    "Mean step time by rank",
                    "s",
                    (Target(mean(group.RANK_STEP_TIME, "group, rank", GROUP), "{{group}} rank {{rank}}"),),
                    "Waits for other ranks are included, so one slow rank lifts them all.",
                ),
                Panel(
                    "Leader's time by part",
                    "percentunit",
                    (Target(rate(group.STEP_PARTS, "group, part", GROUP), "{{group}} {{part}}"),),
                    "Of each second; receive is waiting for the ranks.",
                    is_stacked=True,
                ),
            ),
        ),
        Section(
            "Life",
            (
                Panel(
                    "Groups by state",
                    "short",
                    (Target(total(group.GROUPS, "model, state", MODEL), "{{model}} {{state}}"),),
                    is_stacked=True,
                ),
                Panel(
                    "Start progress by rank",
                    "percentunit",
                    (Target(most(group.START_PROGRESS, "group, rank", GROUP), "{{group}} rank {{rank}}"),),
                ),
                Panel("Generation", "short", (Target(most(group.GENERATION, "group", GROUP), _BY_GROUP),)),
                Panel(
                    "Operation tiers",
                    "short",
                    (
                        Target(
                            f"count by (op, tier, detail) ({group.OP_TIER.name}{{{GROUP}}})",
                            "{{op}}: {{tier}} {{detail}}",
                        ),
                    ),
                    "Groups that run an operation in a tier; `torch` is the slow one.",
                    "stat",
                ),
            ),
        ),
    ),
)

ROUTER = Dashboard(
    "router",
    "eagleray: router",
    (
        Section(
            "Decisions",
            (
                Panel(
                    "Decisions by reason",
                    "reqps",
                    (Target(rate(gateway.ROUTER_DECISIONS, "policy, why"), "{{policy}}: {{why}}"),),
                    gateway.ROUTER_DECISIONS.help,
                    is_stacked=True,
                ),
                Panel(
                    "Prompt tokens expected in caches",
                    "percentunit",
                    (
                        Target(
                            ratio(
                                rate(gateway.ROUTER_TOKENS, where='type="cached"'),
                                rate(gateway.ROUTER_TOKENS, where='type="all"'),
                            ),
                            "expected by the router",
                        ),
                        Target(ratio(rate(group.CACHED_TOKENS), rate(group.PROMPT_TOKENS)), "found by the groups"),
                    ),
                    "Far apart: the router's picture of the caches is old.",
                ),
                Panel(
                    "Tokens to compute by group",
                    "short",
                    (Target(total(group.OUTSTANDING_TOKENS, "group", GROUP), _BY_GROUP),),
                    "Level lines: the work is shared.",
                ),
                Panel(
                    "Requests by group",
                    "short",
                    (
                        Target(
                            f"{total(group.RUNNING, 'group', GROUP)} + {total(group.WAITING, 'group', GROUP)}",
                            _BY_GROUP,
                        ),
                    ),
                ),
            ),
        ),
        Section(
            "Refused or held",
            (
                Panel(
                    "Refused for load",
                    "reqps",
                    (Target(rate(gateway.REFUSALS, "code", 'status=~"429|503"'), "{{code}}"),),
                ),
                Panel("Held for a group", "reqps", (Target(rate(gateway.REQUESTS_HELD, "model", MODEL), _BY_MODEL),)),
            ),
        ),
    ),
)

RELIABILITY = Dashboard(
    "reliability",
    "eagleray: reliability",
    (
        Section(
            "Streams",
            (
                Panel(
                    "Streams resumed",
                    "short",
                    (Target(rise(gateway.STREAM_RESUMES, "model", MODEL), _BY_MODEL),),
                    "Carried to another group after tokens had come.",
                ),
                Panel(
                    "Requests retried",
                    "short",
                    (Target(rise(gateway.REQUEST_RETRIES, "model", MODEL), _BY_MODEL),),
                    "Before their first token.",
                ),
                Panel(
                    "Time between two groups",
                    "s",
                    (Target(rise(gateway.STREAM_RESUME_TIME, "model", MODEL), _BY_MODEL),),
                    "Added up over streams and requests.",
                ),
                Panel(
                    "Streams given up",
                    "short",
                    (Target(rise(gateway.STREAMS_GIVEN_UP, "model", MODEL), _BY_MODEL),),
                    "Should be 0: too few groups, or resume_wait_s too short.",
                ),
                Panel(
                    "Requests quarantined",
                    "short",
                    (Target(rise(gateway.REQUESTS_QUARANTINED, "model", MODEL), _BY_MODEL),),
                    "Groups die of them.",
                ),
                Panel("Waiting for a group", "short", (Target(total(gateway.REQUESTS_WAITING_FOR_GROUP), "waiting"),)),
            ),
        ),
        Section(
            "Groups",
            (
                Panel(
                    "Restarts in place by cause",
                    "short",
                    (Target(rise(group.RESTARTS, "group, cause", GROUP), "{{group}} {{cause}}"),),
                ),
                Panel(
                    "Groups not ready",
                    "short",
                    (Target(total(group.STATE, "state", f'{GROUP},state!="ready"'), "{{state}}"),),
                ),
            ),
        ),
        Section(
            "Refusals",
            (
                Panel("Errors by code", "reqps", (Target(rate(gateway.REFUSALS, "code"), "{{code}}"),)),
                Panel(
                    "Keys refused or limited",
                    "reqps",
                    (
                        Target(
                            rate(gateway.REFUSALS, "code", 'code=~"invalid_api_key|forbidden|rate_limit_exceeded"'),
                            "{{code}}",
                        ),
                    ),
                    "401, 403 and 429 of the guard.",
                ),
                Panel(
                    "Clients that left", "reqps", (Target(rate(gateway.CLIENT_DISCONNECTS, "reason"), "{{reason}}"),)
                ),
            ),
        ),
    ),
)
