"""The part of the table that replica groups fill: what each reports to every gateway, up to ten times a second."""

from deployments.metrics.row import Kind, Row, Unit
from engine.step_times import STEP_S

_LOAD = "engine/request.py EngineLoad"
_FIGURES = "engine/figures.py"
_STATUS = "cluster/status.py GroupStatus"
_OF_GROUP = ("model", "group")


def _row(
    name: str,
    kind: Kind,
    help_text: str,
    unit: Unit,
    *labels: str,
    set_by: str = _LOAD,
    buckets: tuple[float, ...] = (),
) -> Row:
    return Row(name, kind, help_text, (*_OF_GROUP, *labels), unit, "group", set_by, buckets)


RUNNING = _row("eagleray_group_running_requests", "gauge", "Requests being computed.", "requests")
WAITING = _row("eagleray_group_waiting_requests", "gauge", "Requests that wait to be computed.", "requests")
QUEUE = _row(
    "eagleray_group_queue_requests",
    "gauge",
    "The same by what they wait for: rows, kv_blocks, step_tokens; preempted: they had run before.",
    "requests",
    "reason",
    set_by=_FIGURES,
)
OUTSTANDING_TOKENS = _row("eagleray_outstanding_tokens", "gauge", "Tokens still to prefill or decode.", "tokens")
PREDICTED_WAIT = _row(
    "eagleray_predicted_wait_seconds",
    "gauge",
    "How long a new request would wait for others before it is computed.",
    "seconds",
)
KV_USAGE = _row("eagleray_kv_usage_ratio", "gauge", "Share of KV blocks that running requests hold; 1 is all.", "ratio")
KV_BLOCKS = _row(
    "eagleray_kv_blocks",
    "gauge",
    "KV blocks by state: used by running requests, cached (free in effect, with a prefix in it), free.",
    "blocks",
    "state",
)
PROMPT_TOKENS = _row("eagleray_group_prompt_tokens", "counter", "Prompt tokens of requests that began.", "tokens")
CACHED_TOKENS = _row(
    "eagleray_group_cached_prompt_tokens", "counter", "Those of them found in the prefix cache.", "tokens"
)
GENERATED_TOKENS = _row("eagleray_group_generated_tokens", "counter", "Tokens generated.", "tokens")
PREEMPTIONS = _row("eagleray_group_preemptions", "counter", "Requests put back to make room.", "requests")
STEP_TIME = _row(
    "eagleray_step_seconds",
    "histogram",
    "Time of a step on rank 0, one value a step.",
    "seconds",
    set_by=_FIGURES,
    buckets=STEP_S,
)
STEP_PARTS = _row(
    "eagleray_leader_seconds",
    "counter",
    "Where the leader's time goes: intake, plan, submit, tell, publish, receive (waiting for ranks), commit.",
    "seconds",
    "part",
    set_by=_FIGURES,
)
RANK_STEP_TIME = _row(
    "eagleray_rank_step_seconds",
    "summary",
    "Time of steps on each rank, its waits for other ranks included: `_sum` seconds over `_count` steps.",
    "seconds",
    "rank",
    set_by="parallel/rank/pace.py",
)
STATE = _row(
    "eagleray_group_state",
    "gauge",
    "1 for the state a group is in: starting, ready, restarting, draining, failed; 0 for the others.",
    "",
    "state",
    set_by=_STATUS,
)
GENERATION = _row(
    "eagleray_group_generation", "gauge", "Generation of the ranks; grows with every restart.", "", set_by=_STATUS
)
RESTARTS = _row("eagleray_group_restarts", "counter", "In-place restarts, by what broke.", "", "cause", set_by=_STATUS)
START_PROGRESS = _row(
    "eagleray_rank_start_ratio",
    "gauge",
    "How far a rank's start is: connect, load and warm up count a third each; 1 is ready.",
    "ratio",
    "rank",
    set_by=_STATUS,
)
OP_TIER = _row(
    "eagleray_op_tier",
    "gauge",
    "1 for the tier that runs an operation on rank 0.",
    "",
    "op",
    "tier",
    "detail",
    set_by=_STATUS,
)
GROUPS = Row(
    "eagleray_groups",
    "gauge",
    "Groups of a model by state; all 0 for a configured model without groups.",
    ("model", "state"),
    "groups",
    "group",
    "deployments/groups/directory.py",
)
COPIES = Row(
    "eagleray_gateway_copies",
    "gauge",
    "Gateway copies whose values are in this scrape.",
    (),
    "",
    "group",
    "deployments/metrics/copies.py",
)

ROWS = (
    RUNNING,
    WAITING,
    QUEUE,
    OUTSTANDING_TOKENS,
    PREDICTED_WAIT,
    KV_USAGE,
    KV_BLOCKS,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    GENERATED_TOKENS,
    PREEMPTIONS,
    STEP_TIME,
    STEP_PARTS,
    RANK_STEP_TIME,
    STATE,
    GENERATION,
    RESTARTS,
    START_PROGRESS,
    OP_TIER,
    GROUPS,
    COPIES,
)
