"""What a sum over the ranks of one machine costs: through shared memory, and over gloo.

    python -m benchmarks.cpu_kernels.all_reduce                 # two ranks, on a quiet and on a busy machine
    python -m benchmarks.cpu_kernels.all_reduce --ranks 2 4 --json

The ranks are processes that are in both groups and take turns with them. A step of a model has two sums a layer of
hidden_size x tokens floats: 576 is one token of SmolLM2-135M, 18,432 are 32, 294,912 are a prefill of 512. `busy` runs
as many processes that only compute as the machine has cores; what it shows depends on how the kernel divides the cores,
so look at the median and at the CPU time. CPU time is of rank 0's whole process.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from benchmarks.report import shown, summary, write_report
from parallel.groups.base import TPGroup
from parallel.groups.distributed import DistributedGroup
from parallel.groups.joining import join_group
from parallel.groups.store import open_store

HOST = "127.0.0.1"
CPU = torch.device("cpu")
SIZES = (576, 4608, 18432, 294912)
TIMEOUT_S = 60.0
TURN_S = 0.2
"""How long one group is measured before the other one's turn."""
CALLS_AT_A_TIME = 20

_SPAWN = multiprocessing.get_context("spawn")


class Sample(NamedTuple):
    """One group's turns at one size, on rank 0."""

    group: str
    size: int
    call_us: list[float]
    cpu_us: float
    """Of the whole process, per call."""


def main() -> None:
    """Measure and print; with --json write the results file."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--ranks", type=int, nargs="+", default=[2])
    cli.add_argument("--turns", type=int, default=3, help="of each group at each size (3)")
    cli.add_argument("--json", action="store_true", help="write benchmarks/results/<date>-all-reduce.json")
    options = cli.parse_args()
    started_at = datetime.now(UTC)
    figures = []
    for world_size in options.ranks:
        for num_busy in (0, len(os.sched_getaffinity(0))):
            with busy_processes(num_busy):
                samples = measure(world_size, options.turns)
            figures += [describe(world_size, num_busy, sample) for sample in samples]
    print_table(figures)
    if options.json:
        sys.stdout.write(f"{shown(write_report('all-reduce', started_at, {'all_reduce': figures}))}\n")


def measure(world_size: int, num_turns: int) -> list[Sample]:
    """Return rank 0's samples."""
    store = open_store(HOST, 0, TIMEOUT_S)
    pipes = [_SPAWN.Pipe() for _ in range(world_size)]
    ranks = [
        _SPAWN.Process(target=run_rank, args=(rank, world_size, store.port, num_turns, answer))
        for rank, (_, answer) in enumerate(pipes)
    ]
    for process in ranks:
        process.start()
    for _, answer in pipes:
        answer.close()
    try:
        return pipes[0][0].recv()
    finally:
        for process in ranks:
            process.join()


def run_rank(rank: int, world_size: int, port: int, num_turns: int, answer: Connection) -> None:
    """Be one rank; rank 0 sends its samples through `answer`."""
    torch.set_num_threads(1)
    groups = {"shared memory": join_fastest(rank, world_size, port), "gloo": join_gloo(rank, world_size, port)}
    samples = [
        sample
        for size in SIZES
        for sample in take_turns(groups, torch.full((size,), 1.0 / world_size), num_turns, is_judge=rank == 0)
    ]
    if rank == 0:
        answer.send(samples)
    for group in groups.values():
        group.close()


def take_turns(groups: dict[str, TPGroup], x: torch.Tensor, num_turns: int, *, is_judge: bool) -> list[Sample]:
    """Return each group's sample at the size of `x`; the judge says when a turn is over."""
    calls: dict[str, list[float]] = {name: [] for name in groups}
    cpu_s = dict.fromkeys(groups, 0.0)
    for turn in range(num_turns + 1):
        for name, group in groups.items():
            cpu_start_s = time.process_time()
            times = one_turn(group, x, is_judge=is_judge)
            if turn > 0:  # the first warms up
                cpu_s[name] += time.process_time() - cpu_start_s
                calls[name] += times
    return [
        Sample(name, x.numel(), calls[name], round(1e6 * cpu_s[name] / max(1, len(calls[name])), 2)) for name in groups
    ]


def one_turn(group: TPGroup, x: torch.Tensor, *, is_judge: bool) -> list[float]:
    """Return the microseconds of each sum of a tensor like `x` until the judge's time is up. A collective."""
    deadline_s = time.monotonic() + TURN_S
    times: list[float] = []
    while group.all_reduce(torch.tensor([float(is_judge and time.monotonic() < deadline_s)])).item():
        for _ in range(CALLS_AT_A_TIME):
            y = x.clone()
            start_ns = time.perf_counter_ns()
            group.all_reduce(y)
            times.append((time.perf_counter_ns() - start_ns) / 1e3)
    return times


def join_fastest(rank: int, world_size: int, port: int) -> TPGroup:
    """Return the group in shared memory."""
    group = join_group(
        rank=rank,
        world_size=world_size,
        host=HOST,
        node="this machine",
        store=open_store(HOST, port, TIMEOUT_S),
        device=CPU,
        timeout_s=TIMEOUT_S,
        generation=0,
    )
    if group.choice is None or group.choice.reason:
        raise SystemExit(f"the ranks do not share memory: {group.choice}")
    return group


def join_gloo(rank: int, world_size: int, port: int) -> TPGroup:
    """Return the group over sockets."""
    return DistributedGroup.join(
        rank=rank,
        world_size=world_size,
        host=HOST,
        store=open_store(HOST, port, TIMEOUT_S),
        device=CPU,
        timeout_s=TIMEOUT_S,
        generation=1,
    )


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run `count` processes that want a core all the time."""
    processes = [_SPAWN.Process(target=compute_for_ever) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def compute_for_ever() -> None:
    """Never return."""
    while True:
        pass


def describe(world_size: int, num_busy: int, sample: Sample) -> dict[str, object]:
    """Return a sample as it is written down."""
    return {
        "ranks": world_size,
        "machine": "busy" if num_busy else "quiet",
        "floats": sample.size,
        "group": sample.group,
        "call_us": {"min": round(min(sample.call_us), 2), **summary(sample.call_us, 2)},
        "cpu_us": sample.cpu_us,
    }


def print_table(figures: Sequence[dict[str, object]]) -> None:
    """Write the figures for people."""
    sys.stdout.write(
        f"{'ranks':>5} {'machine':<7} {'floats':>7} {'group':<14} {'min':>9} {'p50':>9} {'p99':>10} cpu us\n"
    )
    for row in figures:
        times = row["call_us"]
        assert isinstance(times, dict)
        sys.stdout.write(
            f"{row['ranks']:>5} {row['machine']:<7} {row['floats']:>7} {row['group']:<14} "
            f"{times['min']:>9.2f} {times['p50']:>9.2f} {times['p99']:>10.2f} {row['cpu_us']}\n"
        )


if __name__ == "__main__":
    main()
