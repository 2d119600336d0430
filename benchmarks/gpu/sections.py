"""What is measured, one section after the other. Each adds its rows to the report, which is written after every row.

A row that fails is reported as such and the next is tried: a call on a borrowed machine must not come back empty.
"""

import gc
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.rig import Rig

Figures = dict[str, Any]


class Row(NamedTuple):
    """One measurement to be taken."""

    name: str
    measure: Callable[[], Figures]


class Section(NamedTuple):
    """Measurements that belong together."""

    name: str
    rows: Callable[[], Iterator[Row]]
    """Made when the section's turn comes: it may need what earlier ones found."""


class Report:
    """What was found so far."""

    def __init__(self, save: Callable[[Figures], None], deadline_s: float, clock: Callable[[], float]) -> None:
        """`save` gets all sections after every row; when `clock` passes `deadline_s`, no more rows are begun."""
        self.sections: dict[str, dict[str, Figures]] = {}
        self._save = save
        self._deadline_s = deadline_s
        self._clock = clock

    def run(self, section: Section, rig: Rig, show: Callable[[str], None]) -> None:
        """Take the section's rows."""
        found = self.sections.setdefault(section.name, {})
        try:
            for row in section.rows():
                found[row.name] = self._take(row, rig)
                show(f"{section.name} | {row.name} | {_shown(found[row.name])}")
                self._save(self.sections)
        except Exception as error:  # noqa: BLE001
            # The boundary of a section: what makes its rows may fail like the rows themselves.
            found["section"] = _failed(error)
            show(f"{section.name} | {_shown(found['section'])}")
        self._save(self.sections)

    def _take(self, row: Row, rig: Rig) -> Figures:
        started_s = self._clock()
        if started_s > self._deadline_s:
            return {"skipped": "no time left; name this section alone with --sections, or raise --seconds"}
        try:
            figures = row.measure()
        except Exception as error:  # noqa: BLE001
            # The boundary of a row.
            figures = _failed(error)
        gc.collect()
        rig.free()
        return {**figures, "took_s": round(self._clock() - started_s, 2)}


def _failed(error: Exception) -> Figures:
    is_memory = isinstance(error, torch.OutOfMemoryError)
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return {"failed": "out of memory" if is_memory else words, "at": f"{place.filename}:{place.lineno}"}


def _shown(figures: Figures) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )


def deadline_after(seconds: float) -> float:
    """Return the moment on the monotonic clock."""
    return time.monotonic() + seconds
