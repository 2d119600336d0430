"""A rolling update and a scale-down under streams that are longer than the grace period: none may fail, none be cut.

    python -m benchmarks.faults.rolling

A cluster of its own with Ray's dashboard, `serve deploy` as operators use it: first the fleet, then the same with one
argument of the model changed (every group is replaced), then with one group less. A group that is told to stop lets
streams go on for `--grace` seconds; what is open then the gateway carries to another group. Texts are compared with an
undisturbed run.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.client import Endpoint, RawStream, closed_loop
from benchmarks.faults.answers import Answer, Lengths, answers, judged, questions
from benchmarks.faults.fleet import MODEL, Fleet, FleetPlan
from benchmarks.faults.kills import RESUMES
from benchmarks.faults.ray_nodes import NodePlan, RayNode, ray_head, serve_deploy
from benchmarks.faults.verdict import conclude
from benchmarks.report import summary
from benchmarks.serve_process import free_port
from benchmarks.workloads import Planned

NUM_QUESTIONS = 16
LONG = Lengths(least_prompt=16, most_prompt=128, least_output=300, most_output=500)
CHANGE_TIMEOUT_S = 300.0
SETTLE_S = 20.0
"""Before each change: as long as a stream, so that every group has some."""


@dataclass(frozen=True)
class Change:
    """A deployment that was changed under load."""

    name: str
    seconds: float
    """From `serve deploy` until the old groups were gone."""
    num_resumed: int
    started_s: float
    ended_s: float
    """Of the client's clock."""


class Operator:
    """Deploys one config after another to a running cluster; owns the record."""

    def __init__(self, head: RayNode, fleet: Fleet, folder: Path, port: int) -> None:
        self._head = head
        self._fleet = fleet
        self._folder = folder
        self._port = port
        self.changes: list[Change] = []

    def deploy(self, plan: FleetPlan) -> None:
        """Hand a plan to the cluster; returns when it is accepted."""
        settings = plan.settings()
        settings["http_options"] |= {"host": "127.0.0.1", "port": self._port}
        path = self._folder / "fleet.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        serve_deploy(self._head, path)

    async def change(self, name: str, plan: FleetPlan, num_new: int) -> None:
        """Deploy a plan; returns when `num_new` new groups are ready and as many as planned run. Raises SystemExit."""
        await asyncio.sleep(SETTLE_S)
        self.changes.append(await asyncio.to_thread(self._change, name, plan, num_new))

    def _change(self, name: str, plan: FleetPlan, num_new: int) -> Change:
        fleet = self._fleet
        seen, num_resumes = frozenset(fleet.ready()), fleet.total(RESUMES)
        started_s = time.perf_counter()
        self.deploy(plan)
        fleet.wait_until_ready(num_new, CHANGE_TIMEOUT_S, besides=seen)
        while len(fleet.processes().get("leader", [])) != plan.num_groups:
            if time.perf_counter() - started_s > CHANGE_TIMEOUT_S:
                raise SystemExit(f"{name}: not {plan.num_groups} leaders within {CHANGE_TIMEOUT_S:g} s")
            time.sleep(0.2)
        ended_s = time.perf_counter()
        return Change(name, ended_s - started_s, int(fleet.total(RESUMES) - num_resumes), started_s, ended_s)


async def under_changes(
    endpoint: Endpoint, asked: Sequence[Planned], concurrency: int, operator: Operator, plan: FleetPlan
) -> list[RawStream]:
    """Keep streams open through a rolling update and a scale-down; return them in order sent."""

    async def operate() -> None:
        updated = replace(plan, max_running=plan.max_running - 1)
        await operator.change("rolling update", updated, num_new=plan.num_groups)
        await operator.change("scale-down", replace(updated, num_groups=plan.num_groups - 1), num_new=0)

    operating = asyncio.create_task(operate())
    endless = itertools.takewhile(lambda _: not operating.done(), itertools.cycle(asked))
    streams = await closed_loop(endpoint, endless, concurrency, max_seconds=3 * CHANGE_TIMEOUT_S)
    await operating
    return streams


def figures(
    changes: Sequence[Change], found: Sequence[Answer], undisturbed: Sequence[Answer], asked: Sequence[Planned]
) -> dict[str, Any]:
    """Return what the results file says."""
    return {
        "verdict": judged(found, undisturbed, asked)._asdict(),
        "stream_s": summary([answer.outcome.ended_at - answer.outcome.sent_at for answer in found]),
        "changes": [
            {
                "name": change.name,
                "seconds": round(change.seconds, 2),
                "num_resumed": change.num_resumed,
                "longest_pause_of_a_stream_s": round(longest_pause(change, found), 3),
            }
            for change in changes
        ],
    }


def longest_pause(change: Change, found: Sequence[Answer]) -> float:
    """Return the longest gap between two texts of a stream during a change."""
    return max(
        (
            after - before
            for answer in found
            for before, after in itertools.pairwise(answer.outcome.text_at)
            if before < change.ended_s and after > change.started_s
        ),
        default=0.0,
    )


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the results file if asked; return 0 if no stream failed, was cut, or differs."""
    options = parse_arguments(arguments)
    started_at = datetime.now(UTC)
    plan = FleetPlan(
        num_groups=options.groups, drain_timeout_s=options.grace, graceful_shutdown_timeout_s=options.grace + 10
    )
    asked = questions(NUM_QUESTIONS, LONG, options.seed)
    with (
        tempfile.TemporaryDirectory(prefix="er-") as folder,
        ray_head(NodePlan(has_dashboard=True), Path(folder)) as head,
    ):
        port = free_port()
        fleet = Fleet(f"http://127.0.0.1:{port}", head.process)
        operator = Operator(head, fleet, Path(folder), port)
        operator.deploy(plan)
        fleet.wait_until_ready(options.groups, CHANGE_TIMEOUT_S, besides=frozenset())
        endpoint = Endpoint(f"{fleet.url}/v1", MODEL)
        undisturbed = answers(asyncio.run(closed_loop(endpoint, asked, options.streams, 600)), NUM_QUESTIONS)
        streams = asyncio.run(under_changes(endpoint, asked, options.streams, operator, plan))
    report = {
        "workload": vars(options) | {"questions": NUM_QUESTIONS},
        "undisturbed_errors": judged(undisturbed, undisturbed, asked).errors,
        **figures(operator.changes, answers(streams, NUM_QUESTIONS), undisturbed, asked),
    }
    return conclude("faults-rolling", started_at, report, options.save)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; exits with a message when a scale-down would leave no group."""
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.rolling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("--groups", type=int, default=2, help="replica groups before the scale-down (2)")
    cli.add_argument("--streams", type=int, default=16, help="streams kept open (16)")
    cli.add_argument("--grace", type=float, default=2.0, help="seconds a stopping group lets streams go on (2)")
    cli.add_argument("--seed", type=int, default=0, help="of the questions (0)")
    cli.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-faults-rolling.json")
    options = cli.parse_args(arguments)
    if options.groups < 2:
        cli.error(f"--groups must be 2 or more, got {options.groups}: one group has to stay")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
