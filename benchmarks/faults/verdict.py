"""How a program ends that broke something under streams: the report is printed, kept if asked, and judged."""

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from benchmarks.report import shown, write_report


def conclude(name: str, started_at: datetime, report: Mapping[str, Any], is_kept: bool) -> int:
    """Print the report, write the results file if it is kept; return 0 if no stream failed and no text differs."""
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if is_kept:
        sys.stdout.write(f"{shown(write_report(name, started_at, dict(report)))}\n")
    verdict = report["verdict"]
    return 1 if verdict["errors"] or verdict["num_unequal"] or report["undisturbed_errors"] else 0
