"""Values of one gateway's own metrics. Lives on one event loop, so there is no lock on the way of a token."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Self

from deployments.metrics.row import OTHER, Row
from deployments.metrics.table import max_series

LabelValues = tuple[str, ...]


class Numbers:
    """A counter or gauge: a number for each combination of label values. No more combinations than `max_series`."""

    def __init__(self, row: Row, max_series: int) -> None:
        self.row = row
        self.values: dict[LabelValues, float] = {}
        self._max_series = max_series
        self._rest = (OTHER,) * len(row.labels)

    @classmethod
    def bounded(cls, row: Row) -> Self:
        """Return an empty one with room for what the table allows."""
        return cls(row, max_series(row))

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Count `amount`; what comes after the last combination there is room for is counted under `other`."""
        key = labels if labels in self.values else self._admit(labels)
        self.values[key] = self.values.get(key, 0.0) + amount

    def show(self, combinations: Iterable[LabelValues]) -> None:
        """Have these be there from the start, at 0: a counter that appears with 1 has never risen."""
        for labels in combinations:
            self.values.setdefault(self._admit(labels), 0.0)

    def _admit(self, labels: LabelValues) -> LabelValues:
        return labels if labels in self.values or len(self.values) < self._max_series else self._rest


class Distribution:
    """One histogram's counts for one combination of label values."""

    __slots__ = ("_limits", "counts", "total")

    def __init__(self, limits: tuple[float, ...]) -> None:
        self._limits = limits
        self.counts = [0] * (len(limits) + 1)
        """Of values up to each limit, without those up to the one before; last: all above."""
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Take in a value, `times` times; a token costs one of these."""
        self.counts[bisect_left(self._limits, value)] += times
        self.total += value * times


class Distributions:
    """A histogram: a distribution for each combination of label values. No more of them than `max_series`."""

    def __init__(self, row: Row, max_series: int) -> None:
        self.row = row
        self.series: dict[LabelValues, Distribution] = {}
        self._max_series = max_series
        self._rest = (OTHER,) * len(row.labels)

    @classmethod
    def bounded(cls, row: Row) -> Self:
        """Return an empty one with room for what the table allows."""
        return cls(row, max_series(row))

    def of(self, *labels: str) -> Distribution:
        """Return the distribution for these labels, empty at first; the one of `other` when there is no more room."""
        found = self.series.get(labels)
        if found is not None:
            return found
        key = labels if len(self.series) < self._max_series else self._rest
        return self.series.setdefault(key, Distribution(self.row.buckets))
