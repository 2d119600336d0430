"""Replays public traces through the routers of `cluster.routing` in simulated time; prints what they reach.

    python -m benchmarks.routing --traces DIR --quick         # the acceptance figures alone, minutes
    python -m benchmarks.routing --traces DIR --json          # every table, and the results file with its picture

DIR holds the traces as docs/routing.md says. Seeds are fixed: the same code prints the same figures on any machine.
"""

import argparse
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import shown, write_report
from benchmarks.routing.acceptance import Line, as_table
from benchmarks.routing.pictures import plot_results
from benchmarks.routing.plan import Plan, Results, carry_out
from benchmarks.routing.tables import as_text


def main() -> None:
    """Run and print; with --json write the results file and the picture. Exits with 1 if a target is missed."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--traces", type=Path, required=True, metavar="DIR", help="folder of the traces")
    cli.add_argument("--quick", action="store_true", help="only what the acceptance figures need")
    cli.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    cli.add_argument(
        "--json", action="store_true", help="write benchmarks/results/<date>-routing-simulated[-quick].json"
    )
    options = cli.parse_args()
    started_at = datetime.now(UTC)
    results = carry_out(Plan(options.traces, options.processes, options.quick))
    lines = results.lines()
    sys.stdout.write(f"{as_text(results)}\n\n{as_table(lines)}\n")
    if options.json:
        name = "routing-simulated-quick" if options.quick else "routing-simulated"
        path = write_report(name, started_at, _figures(results, lines))
        plot_results(results, path.with_suffix(".png"))
        sys.stdout.write(f"{shown(path)}\n")
    sys.exit(not all(line.is_met for line in lines))


def _figures(results: Results, lines: list[Line]) -> dict[str, object]:
    """Return what the results file says, without the names of rounding errors."""
    found = asdict(results)
    found["runs"] = {trace: {name: run._asdict() for name, run in runs.items()} for trace, runs in results.runs.items()}
    found["copies"] = {name: run._asdict() for name, run in results.copies.items()}
    found["slowed"] = results.slowed._asdict() if results.slowed else None
    found["killed"] = results.killed._asdict() if results.killed else None
    found["scaling"] = {
        scenario: {name: {**run._asdict(), "figures": run.figures._asdict()} for name, run in runs.items()}
        for scenario, runs in results.scaling.items()
    }
    return {"acceptance": [{**line._asdict(), "is_met": line.is_met} for line in lines], **found}


if __name__ == "__main__":
    main()
