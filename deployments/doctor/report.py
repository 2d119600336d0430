"""Findings as text for people and as JSON for programs."""

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from deployments.doctor.finding import LEVELS, Finding, exit_code

_WIDTH = 120
_COLOURS = {"ok": "32", "note": "36", "warning": "33", "problem": "31"}


def as_json(findings: Sequence[Finding]) -> str:
    """Return one object: `exit_code`, and `findings` with level, check, found, advice."""
    report = {"exit_code": exit_code(findings), "findings": [asdict(finding) for finding in findings]}
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def as_text(findings: Sequence[Finding], *, is_coloured: bool, is_whole: bool) -> str:
    """Return the findings, the gravest last, where a terminal shows them, then how many there are of each level.

    `is_whole` False leaves out what is as it should be.
    """
    shown = [finding for finding in findings if is_whole or finding.level != "ok"]
    width = max((len(finding.check) for finding in shown), default=0)
    lines: list[str] = []
    for level in LEVELS:
        for finding in shown:
            if finding.level == level:
                lines += _lines(finding, width, is_coloured)
    return "".join(line + "\n" for line in [*lines, *([""] if lines else []), _summary(findings)])


def _lines(finding: Finding, width: int, is_coloured: bool) -> list[str]:
    label = finding.level.ljust(7)
    if is_coloured:
        label = f"\033[{_COLOURS[finding.level]}m{label}\033[0m"
    indent = " " * (7 + 2 + width + 2)
    found, *more = _wrap(finding.found, len(indent))
    lines = [f"{label}  {finding.check.ljust(width)}  {found}", *(indent + line for line in more)]
    if finding.advice:
        first, *rest = _wrap(finding.advice, len(indent) + 3)
        lines += [f"{indent}-> {first}", *(f"{indent}   {line}" for line in rest)]
    return lines


def _wrap(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, _WIDTH - indent, break_long_words=False, break_on_hyphens=False) or [""]


def _summary(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.level for finding in findings)
    parts = [f"{counts[level]} {level}{'s' if level != 'ok' and counts[level] != 1 else ''}" for level in LEVELS]
    return f"{len(findings)} checks: {', '.join(parts)}"
