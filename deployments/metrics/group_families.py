"""Replica groups as metrics: read when Prometheus asks, so that groups which are gone leave no values behind."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, get_args

from cluster.status import GroupState, GroupStatus
from core.progress import Progress
from deployments.metrics import group_rows as rows
from deployments.metrics.exposition import Family, Series, distributions, numbers
from deployments.metrics.row import OTHER, Row
from deployments.metrics.store import LabelValues
from engine.figures import EngineFigures
from engine.request import EngineLoad

STATES: tuple[GroupState, ...] = get_args(GroupState)
CAUSES: tuple[str, ...] = ("rank_died", "step_timeout", "out_of_memory", "replica_failed", OTHER)
QUEUE_REASONS: tuple[str, ...] = ("rows", "kv_blocks", "step_tokens", "preempted")
_PHASES = ("connect", "load", "warmup")


class Group(NamedTuple):
    """What a gateway knows of one group."""

    status: GroupStatus
    load: EngineLoad | None
    """None while the group is not connected."""

    @property
    def labels(self) -> LabelValues:
        """Model and group id."""
        return self.status.model, self.status.group_id


Values = Mapping[LabelValues, float]
Rows = dict[Row, Values | list[Series]]


def group_values(groups: Sequence[Group], models: Iterable[str]) -> Rows:
    """Return the values of every row; `models` are to be seen even if they have no group."""
    values: Rows = {rows.GROUPS: _groups(groups, models)}
    statuses = [(group.labels, group.status) for group in groups]
    values[rows.GENERATION] = {labels: status.generation for labels, status in statuses}
    values[rows.STATE] = {
        (*labels, state): float(status.state == state) for labels, status in statuses for state in STATES
    }
    values[rows.RESTARTS] = {
        (*labels, cause): count for labels, status in statuses for cause, count in _restarts(status).items()
    }
    values[rows.START_PROGRESS] = {
        (*labels, str(rank)): start_ratio(status, rank) for labels, status in statuses for rank in _ranks(status)
    }
    values[rows.OP_TIER] = {
        (*labels, choice.op, choice.tier, choice.detail): 1.0 for labels, status in statuses for choice in status.ops
    }
    loads = [(group.labels, group.load) for group in groups if group.load is not None]
    return values | _load_values(loads) | _figure_values(loads)


def family(row: Row, values: Values | list[Series], constant: Mapping[str, str]) -> Family:
    """Return one metric as text."""
    if isinstance(values, list):
        return distributions(row, values, constant)
    return numbers(row, values, constant)


def start_ratio(status: GroupStatus, rank: int) -> float:
    """Return how far a rank's start is; 1 once the group serves."""
    if status.state in ("ready", "draining"):
        return 1.0
    progress = next((one for one in status.progress if one.rank == rank), None)
    return 0.0 if progress is None else _ratio(progress)


def _ratio(progress: Progress) -> float:
    if progress.phase not in _PHASES:
        return 1.0
    return (_PHASES.index(progress.phase) + progress.percent / 100) / len(_PHASES)


def _ranks(status: GroupStatus) -> range:
    return range(status.world_size)


def _restarts(status: GroupStatus) -> dict[str, int]:
    counts = dict.fromkeys(CAUSES, 0)
    for code, count in status.restarts.items():
        counts[code if code in counts else OTHER] += count
    return counts


def _groups(groups: Sequence[Group], models: Iterable[str]) -> Values:
    counts = Counter((group.status.model, group.status.state) for group in groups)
    names = sorted({*models, *(group.status.model for group in groups)})
    return {(model, state): counts[model, state] for model in names for state in STATES}


def _load_values(loads: Sequence[tuple[LabelValues, EngineLoad]]) -> Rows:
    blocks = {
        (*labels, state): count
        for labels, load in loads
        for state, count in (
            ("used", load.num_held_blocks),
            ("cached", load.num_cached_blocks),
            ("free", load.num_free_blocks),
        )
    }
    return {
        rows.RUNNING: {labels: load.num_running for labels, load in loads},
        rows.WAITING: {labels: load.num_waiting for labels, load in loads},
        rows.OUTSTANDING_TOKENS: {labels: load.num_outstanding_tokens for labels, load in loads},
        rows.PREDICTED_WAIT: {labels: load.wait_s for labels, load in loads},
        rows.KV_USAGE: {labels: load.num_held_blocks / max(load.num_blocks, 1) for labels, load in loads},
        rows.KV_BLOCKS: blocks,
        rows.PROMPT_TOKENS: {labels: load.num_prompt_tokens for labels, load in loads},
        rows.CACHED_TOKENS: {labels: load.num_cached_prompt_tokens for labels, load in loads},
        rows.GENERATED_TOKENS: {labels: load.num_generated_tokens for labels, load in loads},
        rows.PREEMPTIONS: {labels: load.num_preemptions for labels, load in loads},
    }


def _figure_values(loads: Sequence[tuple[LabelValues, EngineLoad]]) -> Rows:
    told = [(labels, load, load.figures) for labels, load in loads if load.figures is not None]
    return {
        rows.QUEUE: {
            (*labels, reason): count
            for labels, load, figures in told
            for reason, count in _queue(load.num_waiting, figures).items()
        },
        rows.STEP_TIME: [Series(labels, figures.step_counts, figures.step_s) for labels, _, figures in told],
        rows.STEP_PARTS: {
            (*labels, part): seconds for labels, _, figures in told for part, seconds in figures.leader_s.items()
        },
        rows.RANK_STEP_TIME: [
            Series((*labels, str(pace.rank)), [pace.num_steps], pace.total_s)
            for labels, _, figures in told
            for pace in figures.paces
        ],
    }


def _queue(num_waiting: int, figures: EngineFigures) -> dict[str, int]:
    counts = dict.fromkeys(QUEUE_REASONS, 0)
    counts["preempted"] = min(figures.num_preempted_waiting, num_waiting)
    counts[figures.waits_for] = num_waiting - counts["preempted"]
    return counts
