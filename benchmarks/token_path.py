"""CPU microseconds per streamed token in every process between the engine and the client, ranks left out.

Serves a configuration twice: as Serve is by default, through its Python proxy, and throughput-optimised with the client
on the gateway replica's own port. The real model runs, so steps are paced as they are in life; the ranks are processes
of their own, so what they compute is left out by leaving out their CPU time. Nothing else should run meanwhile.
Figures are given whole, and above what the same processes use while nothing streams.

    python -m benchmarks.token_path                       # 32 streams, both modes
    python -m benchmarks.token_path --concurrency 64 --modes optimised
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.client import Endpoint, closed_loop
from benchmarks.metrics import Targets, figures, parse
from benchmarks.plots import plot_bars
from benchmarks.report import ROOT, shown, summary, write_report
from benchmarks.serve_process import Served, served
from benchmarks.workloads import IdPrompts, Planned
from core.config import read_yaml

TARGET_US = 100.0
"""Microseconds per token of proxy, gateway and leader together, throughput-optimised, at 32 streams."""
MODES = {"default": {}, "optimised": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}}
PATH = ("proxy", "gateway", "leader")
IDLE_S = 10.0


class Round(NamedTuple):
    """What one round of streams cost."""

    cpu_s: dict[str, float]
    """By role."""
    duration_s: float
    num_tokens: int
    result: dict[str, Any]
    """The client's figures."""

    def us_per_token(self, role: str) -> float:
        """CPU microseconds of one role per streamed token."""
        return 1e6 * self.cpu_s.get(role, 0.0) / self.num_tokens

    def idle_us_per_token(self, role: str, idle_cores: Mapping[str, float]) -> float:
        """What the role would have used in that time without a single token, per token."""
        return 1e6 * idle_cores.get(role, 0.0) * self.duration_s / self.num_tokens


def measure(server: Served, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Stream once to warm up, then `--rounds` times; return the figures of the mode."""
    endpoint = Endpoint(f"{server.url}/v1", model)
    _stream(endpoint, options, num_output=8)
    idle_cores = _idle_cores(server)
    return mode_figures([_measure_round(server, endpoint, options) for _ in range(options.rounds)], idle_cores)


def mode_figures(rounds: Sequence[Round], idle_cores: Mapping[str, float]) -> dict[str, Any]:
    """Return medians over the rounds: all CPU time, and what is left of it above idle."""
    roles = sorted({role for one in rounds for role in one.cpu_s})
    totals = [sum(one.us_per_token(role) for role in PATH) for one in rounds]
    idle = [sum(one.idle_us_per_token(role, idle_cores) for role in PATH) for one in rounds]
    above_idle = [total - rest for total, rest in zip(totals, idle, strict=True)]
    return {
        "path_us_per_token": summary(totals, 2),
        "path_us_per_token_above_idle": summary(above_idle, 2),
        "us_per_token": {role: _median([one.us_per_token(role) for one in rounds]) for role in roles},
        "idle_us_per_token": {
            role: _median([one.idle_us_per_token(role, idle_cores) for one in rounds]) for role in PATH
        },
        "idle_cores": idle_cores,
        "output_tokens_per_s": _median([one.num_tokens / one.duration_s for one in rounds]),
        "rounds": [one.result for one in rounds],
    }


def main(arguments: Sequence[str]) -> int:
    """Measure every mode, write the results file and the picture, print the table."""
    options = parse_arguments(arguments)
    model = _model_name(options.config)
    started_at = datetime.now(UTC)
    modes: dict[str, Any] = {}
    for mode in options.modes:
        with served(options.config, MODES[mode], is_direct=mode == "optimised") as server:
            modes[mode] = measure(server, model, options)
        print(describe(mode, modes[mode]), flush=True)
    load = {"streams": options.concurrency, "prompt_tokens": options.prompt, "output_tokens": options.output}
    report = {"config": shown(options.config), "workload": load, "target_us_per_token": TARGET_US, "modes": modes}
    path = write_report("token-path", started_at, report)
    bars = {role: [modes[mode]["us_per_token"].get(role, 0.0) for mode in modes] for role in PATH}
    title = f"CPU per streamed token, {options.concurrency} streams"
    plot_bars(list(modes), bars, "microseconds per token", title, path.with_suffix(".png"))
    print(f"{shown(path)} and .png; target {TARGET_US:.0f} us per token when optimised")
    return 0


def describe(mode: str, result: dict[str, Any]) -> str:
    """Return a mode's figures in one line."""
    roles = ", ".join(
        f"{role} {result['us_per_token'].get(role, 0.0):.0f} ({result['idle_us_per_token'][role]:.0f} idle)"
        for role in PATH
    )
    total, above_idle = result["path_us_per_token"]["p50"], result["path_us_per_token_above_idle"]["p50"]
    speed = result["output_tokens_per_s"]
    return f"{mode}: {total:.0f} us per token, {above_idle:.0f} above idle, at {speed:.0f} tok/s: {roles}"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.token_path",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=32, help="tokens per prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens per answer")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


def _measure_round(server: Served, endpoint: Endpoint, options: argparse.Namespace) -> Round:
    before, started_at = server.cpu_seconds(), time.perf_counter()
    result = _stream(endpoint, options, options.output)
    after, duration_s = server.cpu_seconds(), time.perf_counter() - started_at
    if result["errors"] or not result["num_output_tokens"]:
        raise SystemExit(f"streams failed: {result['errors']}")
    cpu_s = {role: after[role] - before.get(role, 0.0) for role in after}
    return Round(cpu_s, duration_s, result["num_output_tokens"], result)


def _idle_cores(server: Served) -> dict[str, float]:
    """Return what each role uses while nothing streams: health checks, announcements, Ray's own metrics."""
    before = server.cpu_seconds()
    time.sleep(IDLE_S)
    after = server.cpu_seconds()
    return {role: round((after[role] - before.get(role, 0.0)) / IDLE_S, 4) for role in sorted(after)}


def _stream(endpoint: Endpoint, options: argparse.Namespace, num_output: int) -> dict[str, Any]:
    prompts = IdPrompts(seed=num_output).make_many(options.concurrency, options.prompt)
    planned = [Planned(prompt, num_output) for prompt in prompts]
    streams = asyncio.run(closed_loop(endpoint, planned, options.concurrency, max_seconds=300))
    return figures([parse(stream) for stream in streams], Targets(ttft_s=10.0, tpot_s=1.0))


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 2)


def _model_name(config: Path) -> str:
    names = [one["args"]["name"] for one in read_yaml(config)["applications"] if "name" in one.get("args", {})]
    return names[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
