"""Load any OpenAI endpoint and report TTFT, ITL, TPOT, throughput and goodput as JSON and a picture.

Closed loop (as many streams as --concurrency, kept open):
    python -m benchmarks.load --model smollm2-135m --shape A --concurrency 8
Open loop (requests arrive whether or not earlier ones are done):
    python -m benchmarks.load --model smollm2-135m --shape B --rate 2 --arrivals poisson
A recorded trace of arrival times and lengths, CSV or JSONL:
    python -m benchmarks.load --model smollm2-135m --trace arrivals.csv --columns timestamp,input_length,output_length

Every run is bounded by --num-requests and --max-seconds, and loads only this machine unless --allow-remote is given.
Shapes (prompt/output tokens): A 128/128, B 1024/64, C 900 shared + 50 own/64, or for example 256/32 or 900+50/64.
"""

import argparse
import asyncio
import re
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.client import Endpoint, RawStream, closed_loop, open_loop, require_loopback
from benchmarks.metrics import Outcome, Targets, figures, parse
from benchmarks.plots import plot_run
from benchmarks.report import RESULTS, shown, write_report
from benchmarks.workloads import (
    SHAPES,
    IdPrompts,
    Planned,
    PromptMaker,
    Shape,
    TraceColumns,
    WordPrompts,
    arrivals,
    fixed_shape,
    read_trace,
)


@dataclass(frozen=True)
class Run:
    """A finished run: every request's outcome, and the client's own cost."""

    outcomes: list[Outcome]
    client_cpu_s: float


def run_load(endpoint: Endpoint, planned: Sequence[Planned], options: argparse.Namespace) -> Run:
    """Send the requests as the options say, closed or open loop; blocks until the last one ended."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    if options.concurrency is not None:
        driver = closed_loop(endpoint, planned, options.concurrency, options.max_seconds)
    else:
        driver = open_loop(endpoint, planned, options.max_in_flight, options.max_seconds)
    streams: list[RawStream] = asyncio.run(driver)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run([parse(stream) for stream in streams], cpu_s)


def shape_of(text: str) -> Shape:
    """Return A, B, C, `prompt/output` or `shared+own/output`."""
    if text in SHAPES:
        return SHAPES[text]
    match = re.fullmatch(r"(?:(\d+)\+)?(\d+)/(\d+)", text)
    if match is None or int(match[2]) < 1 or int(match[3]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape; use A, B, C, 128/128 or 900+50/64")
    num_shared, num_own, num_output = int(match[1] or 0), int(match[2]), int(match[3])
    return Shape(num_shared + num_own, num_output, num_shared)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; exits with a message when they make no sense together."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_argument_group("where")
    where.add_argument("--url", default="http://127.0.0.1:8000/v1", help="base URL, up to and including /v1")
    where.add_argument("--model", required=True, help="public model name")
    where.add_argument("--api", choices=["completions", "chat"], default="completions")
    where.add_argument("--api-key-file", type=Path, help="its first line is sent as the bearer token")
    where.add_argument("--allow-remote", action="store_true", help="load a machine other than this one")
    what = parser.add_argument_group("what")
    what.add_argument("--shape", type=shape_of, default=SHAPES["A"], help="default A")
    what.add_argument("--trace", type=Path, help="CSV or JSONL of arrival times and lengths")
    what.add_argument("--columns", default=",".join(TraceColumns()), help="trace columns: arrival,prompt,output")
    what.add_argument("--time-scale", type=float, default=1.0, help="seconds per unit of the trace's arrival column")
    what.add_argument("--prompts", choices=["ids", "words"], help="default: ids, and words for the chat API")
    what.add_argument("--tokenizer", type=Path, help="tokenizer.json; words that are one token in it")
    what.add_argument("--allow-eos", action="store_true", help="do not send ignore_eos, for strict OpenAI servers")
    what.add_argument("--seed", type=int, default=0)
    when = parser.add_argument_group("when")
    pace = when.add_mutually_exclusive_group()
    pace.add_argument("--concurrency", type=int, help="closed loop: open streams")
    pace.add_argument("--rate", type=float, help="open loop: requests per second")
    when.add_argument("--arrivals", choices=["poisson", "fixed"], default="poisson", help="gaps of an open loop")
    when.add_argument("--num-requests", type=int, default=64)
    when.add_argument("--max-seconds", type=float, default=300.0, help="then open streams are cut and counted")
    when.add_argument("--max-in-flight", type=int, default=512, help="of an open loop; more are counted, not sent")
    result = parser.add_argument_group("result")
    result.add_argument("--ttft-target-s", type=float, default=1.0)
    result.add_argument("--tpot-target-s", type=float, default=0.1)
    result.add_argument("--name", default="load", help="results file: <date>-<name>.json and .png")
    result.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    options = parser.parse_args(arguments)
    _refuse_nonsense(parser, options)
    return options


def planned_requests(options: argparse.Namespace) -> list[Planned]:
    """Return what will be sent, with arrival times for open loops."""
    prompts: PromptMaker = IdPrompts(options.seed)
    if options.prompts == "words" or (options.prompts is None and options.api == "chat"):
        prompts = WordPrompts(options.seed, options.tokenizer)
    if options.trace is not None:
        columns = TraceColumns(*options.columns.split(","))
        return read_trace(options.trace, columns, prompts, options.num_requests, options.time_scale)
    planned = fixed_shape(options.shape, options.num_requests, prompts)
    if options.rate is None:
        return planned
    return arrivals(planned, options.rate, options.arrivals == "poisson", options.seed)


def workload(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the results file says about the load."""
    loop = {"loop": "closed", "concurrency": options.concurrency}
    if options.concurrency is None:
        pace = "trace" if options.trace is not None else options.arrivals
        loop = {"loop": "open", "arrivals": pace, "rate_per_s": options.rate}
    what = {"trace": options.trace.name} if options.trace is not None else {"shape": options.shape._asdict()}
    return {"api": options.api, "model": options.model, "seed": options.seed, **loop, **what}


def describe(options: argparse.Namespace) -> str:
    """Return the load in one line, for the picture."""
    what = f"trace {options.trace.name}" if options.trace is not None else "{}/{} tokens".format(*options.shape[:2])
    if options.trace is None and options.shape.num_shared:
        what += f", {options.shape.num_shared} of them shared"
    pace = f"{options.concurrency} streams" if options.concurrency else f"{options.rate} requests/s, {options.arrivals}"
    return f"{options.model}, {options.api}: {what}" + ("" if options.trace is not None else f", {pace}")


def main(arguments: Sequence[str]) -> int:
    """Run one load; return 0 if every request completed, else 1."""
    options = parse_arguments(arguments)
    if not options.allow_remote:
        require_loopback(options.url)
    api_key = options.api_key_file.read_text(encoding="utf-8").split()[0] if options.api_key_file else None
    endpoint = Endpoint(options.url, options.model, options.api, api_key, ignore_eos=not options.allow_eos)
    started_at = datetime.now(UTC)
    run = run_load(endpoint, planned_requests(options), options)
    result = figures(run.outcomes, Targets(options.ttft_target_s, options.tpot_target_s))
    report = {"workload": workload(options), "result": result, "client_cpu_s": round(run.client_cpu_s, 3)}
    path = write_report(options.name, started_at, report, options.output)
    plot_run(run.outcomes, describe(options), path.with_suffix(".png"))
    print(table(result))
    print(f"{shown(path)} and .png")
    return 0 if result["num_completed"] == result["num_requests"] else 1


def table(result: dict[str, Any]) -> str:
    """Return the figures as a few aligned lines."""
    lines = [
        f"{result['num_completed']} of {result['num_requests']} requests in {result['duration_s']} s,"
        f" {result['requests_per_s']} req/s, goodput {result['goodput_requests_per_s']} req/s",
        f"{result['output_tokens_per_s']} output tok/s, {result['total_tokens_per_s']} tok/s with prompts",
    ]
    for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
        if result[name]["count"]:
            times = "  ".join(f"{point} {1000 * result[name][point]:8.1f}" for point in ("p50", "p90", "p99"))
            lines.append(f"{name.removesuffix('_s').upper():5} ms  {times}")
    lines += [f"error: {kind}: {count}" for kind, count in result["errors"].items()]
    return "\n".join(lines)


def _refuse_nonsense(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.trace is not None and (options.concurrency or options.rate):
        parser.error("a trace brings its own arrival times; leave out --concurrency and --rate")
    if options.trace is None and options.rate is None and options.concurrency is None:
        options.concurrency = 1
    if options.trace is not None and len(options.columns.split(",")) != len(TraceColumns()):
        parser.error(f"--columns needs three names, got {options.columns!r}")
    for name in ("concurrency", "rate", "num_requests", "max_seconds", "max_in_flight", "time_scale"):
        value = vars(options)[name]
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be more than 0, got {value}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
