"""The CUDA tier on the GPU at hand: is every kernel right, and how near is it to what the card can do?

    python -m benchmarks.gpu --results results.json                           # all sections, under ten minutes
    python -m benchmarks.gpu --results results.json --sections kernels rates  # some of them
    python -m benchmarks.gpu --results results.json --commit 6d882b6          # where git is missing

Needs torch with Triton, numpy, msgspec and psutil; neither Ray nor pydantic, no weights and no network. Results are
written after every row, so that a call that is cut short loses nothing. Exit code 2: there is no GPU for it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.report import origin
from parallel.cuda.support import cuda_obstacle

if TYPE_CHECKING:
    # Triton is there only where there is a GPU.
    from benchmarks.gpu.rig import Rig
    from benchmarks.gpu.sections import Section

SECTIONS = ("rates", "kernels", "attention", "decode", "trace", "two ranks")
EXIT_NO_GPU = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return the exit code."""
    options = parse(arguments)
    device = torch.device("cuda")
    obstacle = cuda_obstacle(device)
    if obstacle:
        print(f"nothing was measured: {obstacle}", file=sys.stderr)
        return EXIT_NO_GPU
    measure(options, device)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description="The CUDA tier on the GPU at hand.")
    parser.add_argument("--results", type=Path, required=True, help="JSON file, written after every row")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="default: all")
    parser.add_argument("--models", nargs="+", choices=("8B", "0.6B"), default=("8B", "0.6B"))
    parser.add_argument("--seconds", type=float, default=540, help="begin no row after so many (default %(default)g)")
    parser.add_argument("--commit", help="of this code, where git cannot tell")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, device: torch.device) -> None:
    """Run the sections, save what they find, and show it beside the goals."""
    from benchmarks.gpu.rig import Rig
    from benchmarks.gpu.sections import Report, deadline_after
    from benchmarks.gpu.targets import compare, table

    head = origin_of(datetime.now(UTC), options.commit)

    def save(sections: dict[str, Any]) -> None:
        found = {"name": "gpu", **head, "targets": compare(sections), "sections": sections}
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    report, rig = Report(save, deadline_after(options.seconds), time.monotonic), Rig.of_gpu(device)
    for section in sections_of(rig, report.sections, options):
        report.run(section, rig, show)
    show(table(compare(report.sections)))
    show(f"written to {options.results}")


def origin_of(started_at: datetime, commit: str | None) -> dict[str, Any]:
    """Return the head of the results; `commit` stands in for what git would say."""
    head = origin(started_at)
    head["versions"]["cuda"] = torch.version.cuda or "none"
    return head if commit is None else {**head, "commit": commit}


def sections_of(rig: "Rig", found: dict[str, dict[str, Any]], options: argparse.Namespace) -> Iterator["Section"]:
    """Yield what is to be measured; rates come first whenever another section is judged by them."""
    from benchmarks.gpu.plan import Plan
    from benchmarks.gpu.sections import Section

    rows = Plan(rig, found, options.models).rows()
    assert tuple(rows) == SECTIONS
    needs_rates = {"rates", "attention", "decode"} & set(options.sections)
    for name in SECTIONS:
        if name in options.sections or (name == "rates" and needs_rates):
            yield Section(name, rows[name])


def show(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
