"""What a server does when more comes than it can do: goodput, refusals and memory at 1, 2 and 10 times its capacity.

    python -m benchmarks.overload                  # the quickstart's model, 128 prompt and 64 output tokens
    python -m benchmarks.overload --seconds 30 --multiples 1,2,5,10

Capacity is what a closed loop of as many streams as the group has rows completes. Then requests arrive as Poisson
processes of multiples of that rate, whether or not earlier ones are done (an open loop, like the world). It counts
for the goodput if its first token and its later ones came in time; the group is told to refuse what would wait longer
than `--max-wait-s`. The rank computes on one core, so that gateway and client have another: on the same one, what is
measured is how they share it.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.client import Endpoint, closed_loop, open_loop
from benchmarks.load import shape_of
from benchmarks.metrics import Outcome, Targets, figures, parse
from benchmarks.report import ROOT, shown, summary, write_report
from benchmarks.serve_process import Served, role_of, served
from benchmarks.workloads import IdPrompts, Planned, Shape, arrivals, fixed_shape
from core.config import read_yaml

MODEL = "smollm2-135m"
OPTIMISED = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
MEMORY_PERIOD_S = 1.0
DRAIN_S = 10.0
"""How long open streams may go on after the last request was sent."""


@dataclass
class MemoryWatch:
    """Resident MiB of the server's processes by role, sampled once a second while the block runs."""

    root: psutil.Process
    samples: list[dict[str, float]] = field(default_factory=list)

    def __enter__(self) -> "MemoryWatch":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> dict[str, float]:
        """Return the resident MiB now, summed over the processes of each role."""
        sizes: dict[str, float] = {}
        for process in [self.root, *self.root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                role = role_of(process)
                sizes[role] = sizes.get(role, 0.0) + process.memory_info().rss / 2**20
        return sizes

    def figures(self) -> dict[str, dict[str, float]]:
        """Return the first and the largest sample of what requests go through."""
        first, roles = self.samples[0], ("gateway", "leader", "rank")
        return {
            role: {
                "first_mib": round(first.get(role, 0.0), 1),
                "max_mib": round(max(sample.get(role, 0.0) for sample in self.samples), 1),
            }
            for role in roles
        }

    def _run(self) -> None:
        while True:
            self.samples.append(self.sample())
            if self._stop.wait(MEMORY_PERIOD_S):
                return


def write_config(folder: Path, options: argparse.Namespace) -> Path:
    """Write the quickstart's config with the group's limits of this run; return its path."""
    settings = read_yaml(ROOT / "configs" / "quickstart.yaml")
    args = settings["applications"][1]["args"]
    args["parallel"]["threads_per_rank"] = options.threads
    args["scheduler"] |= {"max_running": options.max_running, "max_wait_s": options.max_wait_s}
    path = folder / "overload.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def measure_capacity(endpoint: Endpoint, options: argparse.Namespace) -> float:
    """Return the requests per second that a full group completes; blocks for `seconds`."""
    planned = fixed_shape(options.shape, 10_000, IdPrompts(options.seed))
    streams = asyncio.run(closed_loop(endpoint, planned, options.max_running, 1.5 * options.seconds))
    outcomes = [parse(stream) for stream in streams]
    # The first streams all prefill at once; what counts is the pace after them.
    start_s = min(outcome.sent_at for outcome in outcomes) + 0.5 * options.seconds
    ended = [outcome for outcome in outcomes if outcome.error is None and outcome.ended_at >= start_s]
    return len(ended) / options.seconds


def measure_load(server: Served, endpoint: Endpoint, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of an open loop at `rate` requests per second; blocks for `seconds` and a little more."""
    planned = _requests(options.shape, rate, options)
    with MemoryWatch(server.root) as memory:
        driver = open_loop(endpoint, planned, options.max_in_flight, options.seconds + DRAIN_S)
        outcomes = [parse(stream) for stream in asyncio.run(driver)]
    return {"rate_per_s": round(rate, 2), **judge(outcomes, options), "memory": memory.figures()}


def judge(outcomes: Sequence[Outcome], options: argparse.Namespace) -> dict[str, Any]:
    """Return goodput, refusals and what the admitted got."""
    targets = Targets(options.ttft_target_s, options.tpot_target_s)
    refused = [outcome for outcome in outcomes if (outcome.error or "").startswith(("HTTP 429", "HTTP 503"))]
    completed = [outcome for outcome in outcomes if outcome.error is None]
    num_good = sum(targets.met_by(outcome) for outcome in completed)
    result = figures(outcomes, targets)
    return {
        "num_requests": len(outcomes),
        "num_completed": len(completed),
        "num_refused": len(refused),
        # By the time in which requests were sent: what was sent last ends later at any load.
        "goodput_per_s": round(num_good / options.seconds, 3),
        "good_share_of_admitted": round(num_good / max(1, len(outcomes) - len(refused)), 4),
        "refusal_ms": summary([1000 * (outcome.ended_at - outcome.sent_at) for outcome in refused], 2),
        "ttft_s": result["ttft_s"],
        "tpot_s": result["tpot_s"],
        "errors": result["errors"],
    }


def _requests(shape: Shape, rate: float, options: argparse.Namespace) -> list[Planned]:
    planned = fixed_shape(shape, round(rate * options.seconds), IdPrompts(options.seed + round(rate)))
    return arrivals(planned, rate, is_poisson=True, seed=options.seed)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=shape_of, default="128/64", help="prompt/output tokens")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each load")
    parser.add_argument("--multiples", default="1,2,10", help="of the measured capacity")
    parser.add_argument("--rounds", type=int, default=1, help="how often all loads are measured; medians count")
    parser.add_argument("--max-running", type=int, default=16)
    parser.add_argument("--max-wait-s", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1, help="of the rank")
    parser.add_argument("--ttft-target-s", type=float, default=2.5)
    parser.add_argument("--tpot-target-s", type=float, default=0.25)
    parser.add_argument("--max-in-flight", type=int, default=5000, help="of the client")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="overload", help="of the results file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Serve, load, write the results file; return 0 if no request failed in any other way than by refusal."""
    options, started_at = parse_arguments(arguments), datetime.now(UTC)
    multiples = [float(text) for text in options.multiples.split(",")]
    loads: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="eagleray-bench-") as folder,
        served(write_config(Path(folder), options), OPTIMISED, is_direct=True) as server,
    ):
        endpoint = Endpoint(f"{server.url}/v1", MODEL)
        capacity = measure_capacity(endpoint, options)
        for _ in range(options.rounds):
            for multiple in multiples:
                time.sleep(1.0)
                loads.append({"multiple": multiple, **measure_load(server, endpoint, multiple * capacity, options)})
                print(line(loads[-1]), flush=True)
    settings = {key: value for key, value in vars(options).items() if key != "name"}
    goodputs = {f"{multiple:g}": _median_goodput(loads, multiple) for multiple in multiples}
    report = {"settings": settings, "capacity_per_s": round(capacity, 3), "goodput_per_s": goodputs, "loads": loads}
    print(f"capacity {capacity:.2f}/s, goodput {goodputs}; {shown(write_report(options.name, started_at, report))}")
    return int(any(not kind.startswith(("HTTP 429", "HTTP 503")) for load in loads for kind in load["errors"]))


def line(load: dict[str, Any]) -> str:
    """Return one load in one line."""
    refusal, gateway = load["refusal_ms"], load["memory"]["gateway"]
    return (
        f"{load['multiple']:4g}x {load['rate_per_s']:7.1f}/s  goodput {load['goodput_per_s']:6.2f}/s"
        f" ({100 * load['good_share_of_admitted']:.0f} % of the admitted)"
        f"  TTFT p50 {load['ttft_s'].get('p50', 0):.2f} p99 {load['ttft_s'].get('p99', 0):.2f} s"
        f"  TPOT p99 {1000 * load['tpot_s'].get('p99', 0):.0f} ms"
        f"  {load['num_refused']} refused, p50 {refusal.get('p50', 0):.0f} p99 {refusal.get('p99', 0):.0f} ms"
        f"  gateway {gateway['first_mib']:.0f} to {gateway['max_mib']:.0f} MiB"
    )


def _median_goodput(loads: Sequence[dict[str, Any]], multiple: float) -> float:
    return round(statistics.median(load["goodput_per_s"] for load in loads if load["multiple"] == multiple), 3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
