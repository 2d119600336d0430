"""docs/metrics.md: every metric, label, alert and panel, from the table."""

import re
from collections.abc import Iterable, Sequence

from deployments.metrics.row import Row, Scope
from deployments.metrics.table import ALIASES, LABELS, ROWS, aliases_of
from deployments.metrics.views.alerts import ALERTS, RECORDINGS
from deployments.metrics.views.dashboards import DASHBOARDS

_NAME = re.compile(r"[a-z_]+(?=[{\[ )]|$)")
_SUFFIX = re.compile(r"_(bucket|sum|count|total)$")

_HEAD = """\
<!-- Made by `python -m deployments.metrics`; change deployments/metrics and run it again. -->

# Metrics

`GET /metrics` of the gateway has everything: what callers saw, what each replica group and rank does, what the router
decided, what broke and healed. One table in code ([`deployments/metrics`](../deployments/metrics/table.py)) makes the
metrics, this page, [Grafana's dashboards](../deploy/grafana) and [Prometheus' files](../deploy/prometheus):

```sh
python -m deployments.metrics            # writes them again
python -m deployments.metrics --check    # exits with 1 if one is not as it would be written
```

## Set up

Copy `deploy/prometheus/` to where Prometheus runs, write the gateway's address into `prometheus.yml`, and import
`deploy/grafana/*.json` (they ask for the data source).

**With API keys** Prometheus needs one. Make it with `python -m deployments.keys new --name prometheus`, give its
entry `scope: metrics` (it opens `/metrics` and nothing else), and put the key into the file that `credentials_file`
names. Keys with `scope: api`, and keys limited to some `models`, do not open `/metrics`: it names every model and
tenant.

## Several gateway copies

Give Prometheus **one** target, the address that clients use. Serve's proxy hands a scrape to any copy; that copy asks
the others (one call through Serve, two seconds at most) and answers for all.

- What a copy counts itself has the label `gateway`, its id. `rate()` works on each copy's series, and `sum` over
  copies is right however scrapes are balanced. A copy that is replaced ends its series and begins others, as any
  restarted target.
- What groups say of themselves is shown once, by the copy that is connected to most groups; `sum` over it is right as
  well.
- `eagleray_gateway_copies` says how many copies are in the scrape. If one does not answer in time, the scrape has
  only the copy that was asked; the alert `EaglerayGatewayCopyMissing` sees it.

Ray's metrics agents are not used: they prefix every name with `ray_`, warn about the colon in vLLM's names, and are
served on a port of every node, which no API key protects.

## Names

Names of OpenTelemetry's GenAI conventions where there is one, else `eagleray_*`. What vLLM shows too is shown under
its name as well, with the labels `model_name` and `finished_reason`; `metrics: {vllm_names: false}` in the gateway's
`args` leaves that out. Counters end in `_total`; histograms have `_bucket`, `_sum` and `_count`. Counters are there
at 0 before anything happened.

## Bounds

No caller can make a label value: unknown models are `unknown`, unknown paths `other`. Besides, one metric has at most
2048 label sets in a gateway copy, and what is more is counted together under `other`; a group that is gone leaves no
values. Tenants are those of configured keys; `metrics: {tenants: false}` leaves them out.

"""


def metrics_page() -> str:
    """Return docs/metrics.md."""
    parts = [
        _HEAD,
        _labels(),
        _rows("gateway", "## Of each gateway copy", "With the label `gateway` besides those named."),
        _rows("group", "## Of groups", "The same whichever copy answers."),
        _aliases(),
        _buckets(),
        _alerts(),
        _panels(),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def metrics_in(query: str) -> set[str]:
    """Return the rows' names that a query reads."""
    names = {row.name for row in ROWS}
    return {found for word in _NAME.findall(query) if (found := _row_name(word, names)) is not None}


def uses_of(row: Row) -> list[str]:
    """Return the dashboards and alerts that read a metric."""
    boards = [
        f"{board.name}: {panel.title}"
        for board in DASHBOARDS
        for panel in board.panels
        if any(row.name in metrics_in(target.query) for target in panel.targets)
    ]
    return [*boards, *(alert.name for alert in ALERTS if row.name in metrics_in(alert.query))]


def _row_name(word: str, names: set[str]) -> str | None:
    if word in names:
        return word
    shorter = _SUFFIX.sub("", word)
    return shorter if shorter in names else None


def _labels() -> str:
    lines = (f"| `{label.name}` | {label.source} | {label.max_values} |" for label in LABELS)
    return _table("", ("label", "where its values come from", "at most"), lines)


def _rows(scope: Scope, title: str, note: str) -> str:
    lines = (
        f"| `{row.exposed_name}` | {row.kind} | {', '.join(row.labels) or '-'} | {row.unit or '-'} | {row.help} | "
        f"{_source(row)} | {'; '.join(uses_of(row)) or '-'} |"
        for row in ROWS
        if row.scope == scope
    )
    return _table(f"{title}\n\n{note}", ("metric", "type", "labels", "unit", "meaning", "set by", "seen in"), lines)


def _source(row: Row) -> str:
    path, _, rest = row.set_by.partition(" ")
    return f"[`{rest or path.rpartition('/')[2]}`](../{path})"


def _aliases() -> str:
    lines = (f"| `{alias.as_row.exposed_name}` | `{alias.row.exposed_name}` |" for alias in ALIASES)
    return _table("## vLLM's names", ("name", "the same as"), lines)


def _buckets() -> str:
    lines = (
        f"| `{row.name}`{''.join(f', `{alias.name}`' for alias in aliases_of(row))} | "
        f"{', '.join(f'{limit:g}' for limit in row.buckets)} |"
        for row in ROWS
        if row.buckets
    )
    return _table("## Limits of histograms", ("histogram", "upper limits"), lines)


def _alerts() -> str:
    lines = (
        f"| {alert.name} | {alert.severity} | `{alert.query.replace('|', chr(92) + '|')}` for {alert.lasts} | "
        f"{_plain(alert.summary)} {_plain(alert.action)} |"
        for alert in ALERTS
    )
    text = _table("## Alerts", ("alert", "severity", "when", "what it means, what to do"), lines)
    recorded = ", ".join(f"`{rule.name}`" for rule in RECORDINGS)
    return f"{text}\nThresholds are meant to be changed. Recorded besides (`rules.yaml`): {recorded}.\n"


def _plain(text: str) -> str:
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"*\1*", text)


def _panels() -> str:
    lines = (
        f"| {board.title.removeprefix('eagleray: ')} | {section.title} | "
        f"{', '.join(panel.title for panel in section.panels)} |"
        for board in DASHBOARDS
        for section in board.sections
    )
    return _table("## Dashboards", ("dashboard", "part", "panels"), lines)


def _table(title: str, columns: Sequence[str], lines: Iterable[str]) -> str:
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    return f"{title}\n\n{head}" + "".join(f"{line}\n" for line in lines)
