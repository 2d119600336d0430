"""Metrics as Prometheus reads them: its text format, version 0.0.4, written without a parser ever being needed.

A family is one metric with all its series. Families of several gateway copies are joined by putting their samples under
one head, which is why head and samples are kept apart.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from deployments.metrics.row import Row
from deployments.metrics.store import LabelValues

CONTENT_TYPE = "text/plain; version=0.0.4"


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric of one gateway copy, as text."""

    name: str
    head: str
    samples: str


class Series(msgspec.Struct, frozen=True, array_like=True):
    """A histogram or summary for one combination of label values."""

    labels: LabelValues
    counts: Sequence[int]
    """By bucket, not added up; a summary has one."""
    total: float


def numbers(row: Row, values: Mapping[LabelValues, float], constant: Mapping[str, str]) -> Family:
    """Return a counter or gauge; `constant` labels are added to each sample."""
    tail = _tail(constant)
    name = row.exposed_name
    lines = [f"{name}{_labels(row.labels, labels, tail)} {number(value)}\n" for labels, value in values.items()]
    return Family(row.name, _head(row, name), "".join(lines))


def distributions(row: Row, series: Iterable[Series], constant: Mapping[str, str]) -> Family:
    """Return a histogram, or a summary without quantiles."""
    tail = _tail(constant)
    lines: list[str] = []
    for labels, counts, total in ((one.labels, one.counts, one.total) for one in series):
        if row.kind == "histogram":
            lines += _buckets(row, labels, counts, tail)
        shown = _labels(row.labels, labels, tail)
        lines.append(f"{row.name}_sum{shown} {number(total)}\n{row.name}_count{shown} {number(sum(counts))}\n")
    return Family(row.name, _head(row, row.name), "".join(lines))


def page(families: Iterable[Family]) -> bytes:
    """Return what Prometheus scrapes; families of one name must follow each other."""
    parts: list[str] = []
    last = ""
    for family in families:
        if family.name != last:
            parts.append(family.head)
            last = family.name
        parts.append(family.samples)
    return "".join(parts).encode()


def number(value: float) -> str:
    """Return a value as Prometheus writes them."""
    return repr(float(value))


def _head(row: Row, name: str) -> str:
    text = row.help.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {name} {text}\n# TYPE {name} {row.kind}\n"


def _buckets(row: Row, labels: LabelValues, counts: Sequence[int], tail: str) -> list[str]:
    lines: list[str] = []
    num_so_far = 0
    for limit, count in zip((*row.buckets, None), counts, strict=True):
        num_so_far += count
        le = "+Inf" if limit is None else number(limit)
        shown = _labels((*row.labels, "le"), (*labels, le), tail)
        lines.append(f"{row.name}_bucket{shown} {number(num_so_far)}\n")
    return lines


def _labels(names: Sequence[str], values: LabelValues, tail: str) -> str:
    parts = [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]
    if tail:
        parts.append(tail)
    return "{" + ",".join(parts) + "}" if parts else ""


def _tail(constant: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in constant.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
