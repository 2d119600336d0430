"""What dashboards are made of, and the queries they are written in: names come from the table, never from memory."""

from typing import Literal, NamedTuple

from deployments.metrics.row import Row

PanelKind = Literal["timeseries", "stat"]

MODEL = 'model=~"$model"'
GROUP = 'model=~"$model",group=~"$group"'
INTERVAL = "$__rate_interval"


class Target(NamedTuple):
    """One query of a panel."""

    query: str
    legend: str


class Panel(NamedTuple):
    """One plot, or one number."""

    title: str
    unit: str
    """Grafana's name for it."""
    targets: tuple[Target, ...]
    note: str = ""
    """What it means, and when to worry; shown when the title is pointed at."""
    kind: PanelKind = "timeseries"
    is_stacked: bool = False


class Section(NamedTuple):
    """A row of panels."""

    title: str
    panels: tuple[Panel, ...]


class Dashboard(NamedTuple):
    """One dashboard."""

    name: str
    """Of the file, and the end of its uid."""
    title: str
    sections: tuple[Section, ...]

    @property
    def panels(self) -> list[Panel]:
        """Every panel, in order."""
        return [panel for section in self.sections for panel in section.panels]


def rate(row: Row, by: str = "", where: str = "") -> str:
    """Return the rate of a counter, added up over everything but `by`."""
    return _summed(f"rate({row.exposed_name}{_where(where)}[{INTERVAL}])", by)


def total(row: Row, by: str = "", where: str = "") -> str:
    """Return a gauge, added up over everything but `by`."""
    return _summed(f"{row.exposed_name}{_where(where)}", by)


def most(row: Row, by: str, where: str = "") -> str:
    """Return the largest value of a gauge for each `by`."""
    return f"max by ({by}) ({row.exposed_name}{_where(where)})"


def rise(row: Row, by: str, where: str = "") -> str:
    """Return by how much a counter rose in the time shown."""
    return _summed(f"increase({row.exposed_name}{_where(where)}[{INTERVAL}])", by)


def mean(row: Row, by: str, where: str = "") -> str:
    """Return the mean of a histogram or summary."""
    parts = [_summed(f"rate({row.name}_{part}{_where(where)}[{INTERVAL}])", by) for part in ("sum", "count")]
    return " / ".join(parts)


def quantile(share: float, row: Row, by: str = "model", where: str = MODEL, interval: str = INTERVAL) -> str:
    """Return a quantile of a histogram."""
    buckets = f"sum by ({by}, le) (rate({row.name}_bucket{_where(where)}[{interval}]))"
    return f"histogram_quantile({share:g}, {buckets})"


def quantiles(row: Row, where: str = MODEL) -> tuple[Target, ...]:
    """Return p50, p90 and p99 by model."""
    return tuple(
        Target(quantile(share, row, where=where), f"p{100 * share:g} {{{{model}}}}") for share in (0.5, 0.9, 0.99)
    )


def ratio(above: str, below: str) -> str:
    """Return a share; 0 while there is nothing to have a share of."""
    return f"({above}) / (({below}) > 0) or 0 * ({below})"


def _where(selector: str) -> str:
    return f"{{{selector}}}" if selector else ""


def _summed(query: str, by: str) -> str:
    return f"sum by ({by}) ({query})" if by else f"sum({query})"
