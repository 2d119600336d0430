"""What the live page costs a gateway: per token, per second, and per page that looks.

    python -m benchmarks.live_page --save

Processor time of one thread, in one process, without HTTP. The feed's answer is built and encoded as for a page that
looks once a second, and for one that has just been opened and wants ten minutes.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from benchmarks.report import shown, write_report
from cluster.status import ChannelAddress, GroupStatus
from deployments.groups.directory import GroupDirectory
from deployments.groups.unbroken import UnbrokenStreams
from deployments.live.feed import FeedAnswer
from deployments.live.history import KEPT_SECONDS, GroupNow, LiveHistory
from deployments.live.latencies import BucketScale, RequestLatencies
from deployments.live.overview import Overview
from engine.rank_place import RankPlace
from engine.request import EngineLoad

NUM_ROUNDS = 7
TOKENS_PER_SECOND = 1000
RANKS_PER_GROUP = 8


class FilledHistory:
    """Ten minutes of a gateway with `num_groups` groups of one model that always work."""

    def __init__(self, num_groups: int) -> None:
        self.now_s = 1_000_000.02
        self.num_seconds = 0
        self.random = random.Random(1)
        self.directory = GroupDirectory()
        self.overview = Overview(self.directory, UnbrokenStreams(self.directory), ())
        self.history = LiveHistory(self.groups, lambda: self.now_s)
        self.latencies: RequestLatencies = self.history.latencies("model").of_request(0.0)
        self.ids = [f"model#{number:08x}" for number in range(num_groups)]
        for group_id in self.ids:
            self.directory.announce(status_of(group_id))

    def groups(self) -> list[GroupNow]:
        """Return every group's report of this second."""
        done = 100 * self.num_seconds
        return [
            GroupNow(group_id, "model", EngineLoad(8, 2, 0, 700, 300, 200, done, 0, done, done, 0))
            for group_id in self.ids
        ]

    def live(self) -> None:
        """Let a second pass in which tokens come; does not close it."""
        for _ in range(TOKENS_PER_SECOND):
            self.latencies.note_gap(self.random.lognormvariate(-4, 0.5), 1)
        for _ in range(10):
            self.latencies.note_first(self.random.lognormvariate(-2, 0.8))
        self.now_s += 1
        self.num_seconds += 1

    def answer(self, num_seconds: int) -> bytes:
        """Return what a page is told that lacks so many seconds."""

        def sees(model: str) -> bool:
            return True

        models, groups = self.overview.models(sees), self.overview.groups(self.history, sees)
        seconds = self.history.since(int(self.now_s) - 1 - num_seconds, sees)
        return msgspec.json.encode(FeedAnswer("copy", self.now_s, 0, 0, BucketScale(), models, groups, seconds))


def status_of(group_id: str) -> GroupStatus:
    """Return a group's announcement; nothing listens at its address."""
    places = [RankPlace(rank, "node-1", 1000 + rank, f"cuda:{rank}") for rank in range(RANKS_PER_GROUP)]
    return GroupStatus(
        group_id=group_id,
        model="model",
        application="model",
        state="starting",
        generation=0,
        world_size=RANKS_PER_GROUP,
        channel=ChannelAddress("127.0.0.1", 1, b""),
        places=places,
    )


def least_us(work: Callable[[], object], times: int) -> float:
    """Return the least processor time of one call, in microseconds, of several rounds of `times`."""
    rounds: list[float] = []
    for _ in range(NUM_ROUNDS):
        started_s = time.thread_time()
        for _ in range(times):
            work()
        rounds.append((time.thread_time() - started_s) / times * 1e6)
    return round(min(rounds), 3)


def measure(num_groups: int) -> dict[str, Any]:
    """Return the figures for a gateway with so many groups."""
    world = FilledHistory(num_groups)
    ticks: list[float] = []
    for _ in range(KEPT_SECONDS):
        world.live()
        started_s = time.thread_time()
        world.history.tick()
        ticks.append((time.thread_time() - started_s) * 1e6)
    return {
        "groups": num_groups,
        "ranks_per_group": RANKS_PER_GROUP,
        "second_us": round(statistics.median(ticks), 1),
        "answer_us": least_us(lambda: world.answer(1), 50),
        "answer_bytes": len(world.answer(1)),
        "first_answer_us": least_us(lambda: world.answer(KEPT_SECONDS), 10),
        "first_answer_bytes": len(world.answer(KEPT_SECONDS)),
    }


def measure_token() -> float:
    """Return what one token costs, in microseconds, beyond the loop that calls."""
    note = FilledHistory(0).latencies.note_gap
    gaps = [random.Random(1).lognormvariate(-4, 0.5) for _ in range(1000)]

    def noted() -> None:
        for gap in gaps:
            note(gap, 1)

    def empty() -> None:
        for _ in gaps:
            pass

    return round((least_us(noted, 100) - least_us(empty, 100)) / len(gaps), 4)


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write a results file")
    options = parser.parse_args()
    started_at = datetime.now(UTC)
    report = {"token_us": measure_token(), "gateways": [measure(num_groups) for num_groups in (1, 8, 64)]}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")
    if options.save:
        sys.stdout.write(f"wrote {shown(write_report('live-page', started_at, report))}\n")


if __name__ == "__main__":
    main()
