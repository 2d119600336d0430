"""Kills ranks and leaders at random times under open streams: no client may see an error, no text may differ.

    python -m benchmarks.faults.kills --kills 200
    python -m benchmarks.faults.kills --kills 20 --groups 3 --tensor-parallel 2 --leader-share 0.5

Streams are kept open all the time, half greedy, half sampled with a seed. First every question is asked while nothing
breaks; then, again and again, once all groups are ready, one process of the server's own is killed (SIGKILL): a rank,
or a leader, which is a Serve replica. Every answer is compared with the undisturbed one.

`kill_to_resumed_s`: from a kill to the next text of each stream that the gateway carried to another group. How many
those are the gateway counts; they are taken to be the ones that waited longest. `kill_to_first_resumed_s`: the
shortest of these waits, one value a kill.
"""

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from benchmarks.client import Endpoint, RawStream, closed_loop
from benchmarks.faults.answers import Answer, answers, judged, questions, waits_after
from benchmarks.faults.fleet import MODEL, RECOVERY_TIMEOUT_S, Fleet, FleetPlan, served_fleet
from benchmarks.faults.verdict import conclude
from benchmarks.report import summary
from benchmarks.workloads import Planned

NUM_QUESTIONS = 64
RESUMES = "eagleray_stream_resumes_total"
MAX_PAUSE_S = 2.0
"""A kill comes at a random time within this, after all groups are ready."""

Kind = Literal["rank", "leader"]


@dataclass(frozen=True)
class Kill:
    """One process killed."""

    kind: Kind
    at_s: float
    """Of the client's clock."""
    num_resumed: int
    """Streams the gateway carried elsewhere until all groups were ready again."""
    whole_again_s: float
    """From the kill until all groups were ready."""


class Killer:
    """Kills one process after another; owns the record."""

    def __init__(self, fleet: Fleet, leader_share: float, seed: int) -> None:
        self._fleet = fleet
        self._leader_share = leader_share
        self._random = random.Random(seed)
        self.kills: list[Kill] = []

    async def kill(self, count: int) -> None:
        """Kill `count` processes, each when all groups are ready; returns when they are again. Raises SystemExit."""
        for _ in range(count):
            await asyncio.sleep(self._random.uniform(0, MAX_PAUSE_S))
            # In a thread: the client's loop goes on stamping what arrives.
            await asyncio.to_thread(self.kill_one)
            sys.stderr.write(f"\r{len(self.kills)} of {count} killed ")

    def kill_one(self) -> None:
        """Kill a rank or a leader; blocks until all groups are ready again. Raises SystemExit."""
        kind: Kind = "leader" if self._random.random() < self._leader_share else "rank"
        fleet = self._fleet
        seen, num_resumes = frozenset(fleet.ready()), fleet.total(RESUMES)
        victim = self._random.choice(fleet.processes()[kind])
        at_s = time.perf_counter()
        victim.kill()
        # The former ones are not all dead, but one of them is, and another one must have come.
        fleet.wait_until_ready(1, RECOVERY_TIMEOUT_S, besides=seen)
        whole_again_s = time.perf_counter() - at_s
        self.kills.append(Kill(kind, at_s, int(fleet.total(RESUMES) - num_resumes), whole_again_s))


async def under_fire(
    endpoint: Endpoint, asked: Sequence[Planned], concurrency: int, killer: Killer, num_kills: int
) -> list[RawStream]:
    """Keep streams open until the last kill is survived and the last answer is there; return them in order sent."""
    killing = asyncio.create_task(killer.kill(num_kills))
    endless = itertools.takewhile(lambda _: not killing.done(), itertools.cycle(asked))
    streams = await closed_loop(endpoint, endless, concurrency, max_seconds=num_kills * RECOVERY_TIMEOUT_S)
    await killing
    return streams


def figures(
    kills: Sequence[Kill], found: Sequence[Answer], undisturbed: Sequence[Answer], asked: Sequence[Planned]
) -> dict[str, Any]:
    """Return what the results file says."""
    waits = [waits_after(kill.at_s, found) for kill in kills]
    resumed = [longest[: kill.num_resumed] for kill, longest in zip(kills, waits, strict=True)]
    by_kind: dict[str, dict[str, Any]] = {}
    for kind in sorted({kill.kind for kill in kills}):
        mine = [number for number, kill in enumerate(kills) if kill.kind == kind]
        by_kind[kind] = {
            "kills": len(mine),
            "kill_to_resumed_s": summary([wait for number in mine for wait in resumed[number]]),
            "kill_to_whole_again_s": summary([kills[number].whole_again_s for number in mine]),
        }
    return {
        "verdict": judged(found, undisturbed, asked)._asdict(),
        "num_resumed": sum(kill.num_resumed for kill in kills),
        "kill_to_resumed_s": summary([wait for some in resumed for wait in some]),
        "kill_to_first_resumed_s": summary([min(some) for some in resumed if some]),
        "kill_to_longest_wait_of_any_stream_s": summary([longest[0] for longest in waits if longest]),
        "by_kind": by_kind,
    }


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the results file if asked; return 0 if no client saw an error and every text is equal."""
    options = parse_arguments(arguments)
    started_at = datetime.now(UTC)
    plan = FleetPlan(num_groups=options.groups, world_size=options.tensor_parallel)
    asked = questions(NUM_QUESTIONS, seed=options.seed)
    with served_fleet(plan) as fleet:
        endpoint = Endpoint(f"{fleet.url}/v1", MODEL)
        undisturbed = answers(asyncio.run(closed_loop(endpoint, asked, options.streams, 600)), NUM_QUESTIONS)
        killer = Killer(fleet, options.leader_share, options.seed)
        streams = asyncio.run(under_fire(endpoint, asked, options.streams, killer, options.kills))
    report = {
        "workload": vars(options) | {"questions": NUM_QUESTIONS},
        "undisturbed_errors": judged(undisturbed, undisturbed, asked).errors,
        **figures(killer.kills, answers(streams, NUM_QUESTIONS), undisturbed, asked),
    }
    return conclude("faults-kills", started_at, report, options.save)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; exits with a message when no group would be left to carry streams on."""
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("--kills", type=int, default=200, help="processes to kill, one after another (200)")
    cli.add_argument("--streams", type=int, default=32, help="streams kept open (32)")
    cli.add_argument("--groups", type=int, default=2, help="replica groups (2)")
    cli.add_argument("--tensor-parallel", type=int, default=1, help="ranks of a group (1)")
    cli.add_argument("--leader-share", type=float, default=0.2, help="share of the kills that hit a leader (0.2)")
    cli.add_argument("--seed", type=int, default=0, help="of questions, victims and times (0)")
    cli.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-faults-kills.json")
    options = cli.parse_args(arguments)
    if options.groups < 2:
        cli.error(f"--groups must be 2 or more, got {options.groups}: with one there is nowhere to carry streams to")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
