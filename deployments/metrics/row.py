"""What one metric is: a row of the table from which the code, docs/metrics.md, dashboards and alerts are made."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram", "summary"]

Scope = Literal["gateway", "group"]
"""Whose value it is. `gateway`: of one gateway copy, told apart by the label `gateway`; add up over copies. `group`:
what a replica group says of itself; every copy knows it, one of them shows it."""

Unit = Literal["seconds", "tokens", "requests", "blocks", "ratio", "streams", "groups", "steps", ""]

OTHER = "other"
"""Stands for every value of a label beyond those it may have."""


class Label(NamedTuple):
    """Where the values of a label come from, and how many there can be: no caller can make up one."""

    name: str
    source: str
    max_values: int
    """Of one gateway copy, or one group; what is more is counted under `other`."""


class Row(NamedTuple):
    """One metric."""

    name: str
    """As Prometheus knows it, without the suffixes that a kind adds: `_total`, `_bucket`, `_sum`, `_count`."""
    kind: Kind
    help: str
    """One line for people who read a dashboard."""
    labels: tuple[str, ...]
    unit: Unit
    scope: Scope
    set_by: str
    """The module that knows the value."""
    buckets: tuple[float, ...] = ()
    """Upper limits, of a histogram."""

    @property
    def exposed_name(self) -> str:
        """What a query names: counters end in `_total`."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    @property
    def exposed_labels(self) -> tuple[str, ...]:
        """The labels in a scrape."""
        return (*self.labels, "gateway") if self.scope == "gateway" else self.labels


class Alias(NamedTuple):
    """A name under which other software looks for one of our metrics."""

    name: str
    row: Row
    renamed: Mapping[str, str]
    """Other names of some labels."""

    @property
    def as_row(self) -> Row:
        """Return the alias as a metric of its own."""
        labels = tuple(self.renamed.get(label, label) for label in self.row.labels)
        return self.row._replace(name=self.name, labels=labels)
