"""What the rank channel costs a step: plan out to every rank and tokens back, against a multiprocessing pipe.

    python -m benchmarks.rank_channel                       # empty and 256-row steps, 1 and 2 ranks
    python -m benchmarks.rank_channel --ranks 1 2 4 --json

Ranks are processes that answer at once instead of computing, so a round trip is all channel. The pipe carries the
same content as plain pickled tuples, written to every rank and read back from rank 0, which is the least one could
write; it neither authenticates nor notices that another rank than 0 died. Rounds alternate between the two. On fewer
cores than processes the figure includes waiting for a core.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

from benchmarks.report import shown, summary, write_report
from core.progress import Progress
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from parallel.plan import BlocksAppended, SampledTokens, StepPlan, StepResult, pack_integers, unpack_integers
from parallel.rank.channel import connect_to_leader
from parallel.rank.messages import (
    Arrived,
    Enlist,
    Joined,
    Listening,
    Plan,
    RankProgress,
    RankSpec,
    Rendezvous,
    Result,
    Shutdown,
)
from parallel.rank.pulse import open_pulse

BLOCK_SIZE = 16
SHAPES = {"empty": 0, "decode of 256 rows": 256}
"""Rows that decode in the step."""

_SPAWN = multiprocessing.get_context("spawn")


class EchoLauncher:
    """A RankLauncher of processes that answer plans with `num_rows` tokens and compute nothing."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._processes: list[BaseProcess] = []

    def launch(self, specs: Sequence[RankSpec]) -> None:
        """Start one process per spec."""
        self._processes = [_SPAWN.Process(target=echo_rank, args=(spec, self._num_rows)) for spec in specs]
        for process in self._processes:
            process.start()

    def end(self, seat: int, pid: int | None = None) -> None:
        """Kill one and wait."""
        self._processes[seat].kill()
        self._processes[seat].join()

    def stop(self) -> None:
        """Kill and wait."""
        for process in self._processes:
            process.kill()
            process.join()

    def describe_exit(self, seat: int) -> str | None:
        """Return the exit code, None while the process runs."""
        code = self._processes[seat].exitcode
        return None if code is None else f"exit code {code}"


def echo_rank(spec: RankSpec, num_rows: int) -> None:
    """Be a rank that has nothing to compute."""
    channel, host = connect_to_leader(spec.leader_host, spec.leader_port, spec.secret)
    channel.send(Arrived(spec.seat, os.getpid()))
    pulse = open_pulse(spec)
    order = channel.receive()
    assert isinstance(order, Enlist)
    channel.send(Joined(order.rank, order.generation, os.getpid(), host, "node", "cpu", 1, 1))
    if spec.world_size > 1:
        assert isinstance(channel.receive(), Rendezvous)
        if order.rank == 0:
            channel.send(Listening(1))
    channel.send(RankProgress(Progress(order.rank, "connect", 1, 1)))
    rows, tokens = np.arange(num_rows), np.ones(num_rows, np.int64)
    while not isinstance(message := channel.receive(), Shutdown):
        assert isinstance(message, Plan)
        if order.rank == 0:
            sampled = SampledTokens(pack_integers(rows), pack_integers(tokens))
            channel.send(Result(StepResult(message.plan.step, sampled, 0.0)))
    pulse.stop()
    channel.finish(1.0)


def echo_pipe(pipe: Connection, rank: int, num_rows: int) -> None:
    """Be the same at the end of a pipe; None ends it."""
    while (message := pipe.recv()) is not None:
        if rank == 0:
            pipe.send((message[0], [(row, 1) for row in range(num_rows)], 0.0))


def appended_rows(num_rows: int) -> range:
    """Return the rows that cross into a new block in a steady decode step."""
    return range(num_rows // BLOCK_SIZE)


def time_channel(num_ranks: int, num_rows: int, num_steps: int) -> list[float]:
    """Return the microseconds of each round trip over the rank channel."""
    pool = SocketRankPool(EchoLauncher(num_rows), num_ranks, 0, PoolOptions())
    try:
        pool.join(lambda progress: None)

        def round_trip(step: int) -> None:
            appended = [BlocksAppended(row, [step]) for row in appended_rows(num_rows)]
            pool.submit(StepPlan(step, None, appended=appended))
            assert len(unpack_integers(pool.collect(10).sampled.token_ids)) == num_rows

        return time_steps(round_trip, num_steps)
    finally:
        pool.close()


def time_pipe(num_ranks: int, num_rows: int, num_steps: int) -> list[float]:
    """Return the microseconds of each round trip over pipes."""
    ends = [_SPAWN.Pipe() for _ in range(num_ranks)]
    processes = [
        _SPAWN.Process(target=echo_pipe, args=(theirs, rank, num_rows)) for rank, (_, theirs) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    pipes = [ours for ours, _ in ends]
    try:

        def round_trip(step: int) -> None:
            message = (step, None, [], [], [(row, [step]) for row in appended_rows(num_rows)])
            for pipe in pipes:
                pipe.send(message)
            assert len(pipes[0].recv()[1]) == num_rows

        return time_steps(round_trip, num_steps)
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send(None)
            process.join()


def time_steps(round_trip: Callable[[int], None], num_steps: int) -> list[float]:
    """Return the microseconds of each step after as many again to warm up, at most 200."""
    for step in range(min(num_steps, 200)):
        round_trip(step)
    times_us: list[float] = []
    for step in range(1000, 1000 + num_steps):
        began_ns = time.perf_counter_ns()
        round_trip(step)
        times_us.append((time.perf_counter_ns() - began_ns) / 1e3)
    return times_us


def measure(num_ranks: int, num_rows: int, options: argparse.Namespace) -> dict[str, object]:
    """Return both ways' round trips over all rounds, and the median of the rounds' ratios of medians."""
    channel_us: list[float] = []
    pipe_us: list[float] = []
    ratios: list[float] = []
    for _ in range(options.rounds):
        channel = time_channel(num_ranks, num_rows, options.steps)
        pipe = time_pipe(num_ranks, num_rows, options.steps)
        ratios.append(statistics.median(channel) / statistics.median(pipe))
        channel_us += channel
        pipe_us += pipe
    return {
        "ranks": num_ranks,
        "rows": num_rows,
        "channel_us": summary(channel_us, digits=1),
        "pipe_us": summary(pipe_us, digits=1),
        "channel_over_pipe": round(statistics.median(ratios), 2),
    }


def main() -> None:
    """Measure, and write the figures as text, JSON or a results file."""
    options = parse_options()
    started_at = datetime.now(UTC)
    assert threading.active_count() == 1, "another thread would share the core"
    rows = [
        {"step": name, **measure(num_ranks, num_rows, options)}
        for num_ranks in options.ranks
        for name, num_rows in SHAPES.items()
    ]
    report = {"steps_per_round": options.steps, "rounds": options.rounds, "round_trips": rows}
    if options.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        for row in rows:
            sys.stdout.write(", ".join(f"{name} {value}" for name, value in row.items()) + "\n")
    if options.save:
        sys.stdout.write(f"wrote {shown(write_report('rank-channel', started_at, report))}\n")


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=1000, help="per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="write the figures to standard output as JSON")
    parser.add_argument("--save", action="store_true", help="write a results file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
