"""What the doctor says: one finding per thing looked at, and the exit code that all of them make."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Level = Literal["ok", "note", "warning", "problem"]
"""`note`: worth knowing, nothing to do. `warning`: works, but not well or not for long. `problem`: does not work."""

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")
"""Mildest first."""
EXIT_SOUND, EXIT_WARNINGS, EXIT_PROBLEMS = 0, 1, 2


class Finding(msgspec.Struct, frozen=True):
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
    worst = max((LEVELS.index(finding.level) for finding in findings), default=0)
    return {"warning": EXIT_WARNINGS, "problem": EXIT_PROBLEMS}.get(LEVELS[worst], EXIT_SOUND)
