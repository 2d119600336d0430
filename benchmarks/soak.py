"""Serves for a quarter of an hour while clients leave, send nonsense and ranks die: does anything grow?

    python -m benchmarks.soak --minutes 15

Streams of mixed lengths are kept open all the time; other callers leave in the middle, others send bad input, and
every `--kill-every` seconds a rank or a leader of the server is killed. Every process is read every two seconds. In the
end the load stops, and all KV blocks must be free. Slopes are of processes that lived for long enough, without their
first minute.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from benchmarks.client import Endpoint, RawStream, closed_loop
from benchmarks.faults.answers import Answer, Lengths, answers, judged, questions
from benchmarks.faults.churn import is_refusal, leave_early, send_bad_input
from benchmarks.faults.fleet import MODEL, Fleet, FleetPlan, served_fleet
from benchmarks.faults.kills import Killer
from benchmarks.faults.watch import ORDINARY, Growth, Watch, growths
from benchmarks.report import shown, write_report
from benchmarks.workloads import Planned

NUM_QUESTIONS = 64
MIXED = Lengths(least_prompt=4, most_prompt=700, least_output=8, most_output=300)
NUM_LEAVING = 4
NUM_SENDING_NONSENSE = 2
QUIESCE_S = 30.0

IDLE_METRICS = ("vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting")


@dataclass(frozen=True)
class Churn:
    """What was done to the server."""

    streams: list[RawStream]
    num_left: int
    statuses: Counter[int | str]
    """Answers to bad input."""


async def churn(endpoint: Endpoint, asked: Sequence[Planned], killer: Killer, options: argparse.Namespace) -> Churn:
    """Load, disturb and kill for `options.minutes`; returns when every stream has ended."""
    end_s = time.monotonic() + 60 * options.minutes

    def is_over() -> bool:
        return time.monotonic() >= end_s

    async def kill() -> None:
        while options.kill_every and time.monotonic() + options.kill_every < end_s:
            await asyncio.sleep(options.kill_every)
            await asyncio.to_thread(killer.kill_one)

    endless = itertools.takewhile(lambda _: not is_over(), itertools.cycle(asked))
    # A connection for each request: whoever leaves takes it along.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        loads = asyncio.create_task(closed_loop(endpoint, endless, options.streams, 60 * options.minutes + 300))
        leaving = [leave_early(session, endpoint, asked, is_over, seed) for seed in range(NUM_LEAVING)]
        nonsense = [send_bad_input(session, endpoint, is_over, seed) for seed in range(NUM_SENDING_NONSENSE)]
        killing = asyncio.create_task(kill())
        left, statuses = await asyncio.gather(asyncio.gather(*leaving), asyncio.gather(*nonsense))
        await killing
        return Churn(await loads, sum(left), sum(statuses, Counter()))


def busy_after_quiesce(fleet: Fleet) -> dict[str, dict[str, float]]:
    """Return the metrics that are not 0 though nobody asks anything, waiting a while for them; empty is good."""
    deadline_s = time.monotonic() + QUIESCE_S
    while True:
        values = {name: fleet.metric(name) for name in IDLE_METRICS}
        busy = {name: found for name, found in values.items() if any(found.values())}
        if not busy or time.monotonic() > deadline_s:
            return busy
        time.sleep(0.5)


def figures(
    done: Churn, killer: Killer, found: Sequence[Answer], undisturbed: Sequence[Answer], asked: Sequence[Planned]
) -> dict[str, Any]:
    """Return what callers saw."""
    return {
        "verdict": judged(found, undisturbed, asked)._asdict(),
        "output_tokens": sum(answer.outcome.num_output_tokens for answer in found),
        "kills": dict(Counter(kill.kind for kill in killer.kills)),
        "num_resumed": sum(kill.num_resumed for kill in killer.kills),
        "callers_that_left": done.num_left,
        "bad_input": {str(status): count for status, count in sorted(done.statuses.items(), key=str)},
        "bad_input_not_refused": sum(count for status, count in done.statuses.items() if not is_refusal(status)),
    }


def printed(grown: Sequence[Growth]) -> str:
    """Return a line a process."""
    lines = ["role      pid   minutes    RSS MiB       MiB an hour    descriptors  threads"]
    for one in grown:
        reasons = "; ".join(one.reasons(ORDINARY)) or "flat"
        lines.append(
            f"{one.process.role:8} {one.process.pid:6} {one.watched_s / 60:6.1f}"
            f"  {one.rss_mib[0]:6.0f} {one.rss_mib[1]:6.0f}  {one.rss.per_h:7.1f} +- {one.rss.error_per_h:4.1f}"
            f"  {one.fds[0]:5} {one.fds[1]:5}  {one.threads[0]:4} {one.threads[1]:4}  {reasons}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run, print, write the results file if asked; return 0 if all is flat and no caller saw an error of ours."""
    options = parse_arguments(arguments)
    started_at = datetime.now(UTC)
    plan = FleetPlan(num_groups=options.groups, world_size=options.tensor_parallel)
    asked = questions(NUM_QUESTIONS, MIXED, options.seed)
    with served_fleet(plan) as fleet:
        endpoint = Endpoint(f"{fleet.url}/v1", MODEL)
        undisturbed = answers(asyncio.run(closed_loop(endpoint, asked, options.streams, 600)), NUM_QUESTIONS)
        killer = Killer(fleet, options.leader_share, options.seed)
        with Watch(fleet.processes) as watch:
            done = asyncio.run(churn(endpoint, asked, killer, options))
        busy = busy_after_quiesce(fleet)
    grown = growths(watch.readings)
    report = {
        "workload": vars(options) | {"questions": NUM_QUESTIONS},
        "limits": ORDINARY._asdict(),
        **figures(done, killer, answers(done.streams, NUM_QUESTIONS), undisturbed, asked),
        "busy_after_quiesce": busy,
        "processes": [one.as_json(ORDINARY) for one in grown],
    }
    sys.stdout.write(json.dumps(report, indent=1) + f"\n{printed(grown)}\n")
    if options.save:
        sys.stdout.write(f"{shown(write_report('soak', started_at, report))}\n")
    return 0 if is_flat(report) else 1


def is_flat(report: dict[str, Any]) -> bool:
    """Whether nothing grew or is held, and callers got what they deserved; not if no process lived long enough."""
    verdict, processes = report["verdict"], report["processes"]
    is_held = report["busy_after_quiesce"] or not processes or any(process["grew"] for process in processes)
    return not (is_held or verdict["errors"] or verdict["num_unequal"] or report["bad_input_not_refused"])


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--minutes", type=float, default=15.0, help="length of the load (15)")
    cli.add_argument("--streams", type=int, default=16, help="streams kept open (16)")
    cli.add_argument("--groups", type=int, default=2, help="replica groups (2)")
    cli.add_argument("--tensor-parallel", type=int, default=1, help="ranks of a group (1)")
    cli.add_argument("--kill-every", type=float, default=60.0, help="seconds between kills; 0 kills nothing (60)")
    cli.add_argument("--leader-share", type=float, default=0.1, help="share of the kills that hit a leader (0.1)")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-soak.json")
    return cli.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
