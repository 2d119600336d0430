"""What the doctor says: one finding per thing looked at, and the exit code that all of them make.

Only the standard library here, as in probing and report: they must work where nothing else does.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]
"""`note`: worth knowing, nothing is wrong. `warning`: works, but badly or not for long. `problem`: does not work."""

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")
"""Mildest first."""
EXIT_SOUND, EXIT_WARNINGS, EXIT_PROBLEMS = 0, 1, 2


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    check: str
    """Stable name, `node.shm`; docs/doctor.md explains each."""
    found: str
    """What is so, with the value."""
    advice: str = ""
    """What to do about it; never empty for warnings and problems."""


def ok(check: str, found: str) -> Finding:
    """Return that a thing is as it should be."""
    return Finding("ok", check, found)


def note(check: str, found: str, advice: str = "") -> Finding:
    """Return what is worth knowing."""
    return Finding("note", check, found, advice)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return what works, but badly or not for long, and what to do."""
    return Finding("warning", check, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """Return what does not work, and what to do."""
    return Finding("problem", check, found, advice)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0 if all is sound, 1 if there are warnings, 2 if there are problems."""
    levels = {finding.level for finding in findings}
    if "problem" in levels:
        return EXIT_PROBLEMS
    return EXIT_WARNINGS if "warning" in levels else EXIT_SOUND
