"""Packed products of the CPU tier, and oneDNN's with a packed bfloat16 weight, taking turns.

    python -m benchmarks.cpu_kernels.matmul                          # one thread and all, then --json for the file
    python -m benchmarks.cpu_kernels.matmul --threads 2 --busy 1     # beside a process that takes a core

Each matrix is there as often as it takes to be more than caches hold, so up to some tokens the limit is memory:
`gb_per_s` is bytes of packed weights, to be held against the machine's own `read_gb_per_s`. Matrices are those of
SmolLM2-135M (qkv, o, gate_up, down, LM head) and one of an 8B model. Ours reads and writes float32 activations, oneDNN
bfloat16 ones.

T tokens, I inputs, R outputs.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers.bandwidth import measure_once
from benchmarks.report import shown, summary, write_report
from parallel.cpu.arena import Arena
from parallel.cpu.library import KernelLibrary
from parallel.cpu.matrix import CpuMatmul
from parallel.cpu.threads import ThreadPool
from parallel.formats.quantise import quantise_int8
from parallel.formats.quantised import GROUP_SIZE, QuantFormat, QuantisedMatrix
from parallel.ops.base import Matmul
from parallel.ops.torch_matmul import PackedMatmul

SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576), (4096, 4096))
TOKENS = (1, 8, 32, 128, 512)
FORMATS = ("bf16", "int8", "int4")
ONEDNN = "onednn bf16"
MIN_BYTES = 160 << 20
MAX_TURN_S = 0.1
"""A turn goes through the copies, but not for longer."""


class Case(NamedTuple):
    """One product."""

    num_outputs: int
    num_inputs: int
    num_tokens: int
    num_threads: int


class Side(NamedTuple):
    """Copies of one weight, and what they are multiplied with."""

    name: str
    matmuls: Sequence[Matmul]
    inputs: Tensor
    """x_TI."""

    def turn(self) -> float:
        """Return the seconds of a product, averaged over the copies."""
        start, num_calls = time.perf_counter(), 0
        for matmul in self.matmuls:
            matmul(self.inputs)
            num_calls += 1
            if time.perf_counter() - start > MAX_TURN_S:
                break
        return (time.perf_counter() - start) / num_calls


def main() -> None:
    """Measure and print; with --json write the results file."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    cli.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    cli.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    cli.add_argument("--turns", type=int, default=7, help="of each side (7)")
    cli.add_argument("--busy", type=int, default=0, help="processes that only compute meanwhile (0)")
    cli.add_argument("--level", help="instruction-set level of our kernels (the best)")
    cli.add_argument("--json", action="store_true", help="write benchmarks/results/<date>-matmul.json")
    options = cli.parse_args()
    started_at = datetime.now(UTC)
    library = KernelLibrary.load(options.level)
    bandwidth = measure_once().in_gb_per_s()
    sys.stdout.write(f"level {library.level}, reads {bandwidth} GB/s\n")
    with busy_processes(options.busy):
        rows = [row for threads in options.threads for row in measure_all(library, threads, options)]
    if options.json:
        figures = {"level": library.level, "busy": options.busy, "read_gb_per_s": bandwidth, "products": rows}
        name = f"matmul-beside-{options.busy}" if options.busy else "matmul"
        sys.stdout.write(f"wrote {shown(write_report(name, started_at, figures))}\n")


def measure_all(library: KernelLibrary, num_threads: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row of figures per side and product."""
    torch.set_num_threads(num_threads)
    pool = ThreadPool(library, num_threads)
    for num_outputs, num_inputs in SHAPES:
        weight_RI = torch.randn(num_outputs, num_inputs).bfloat16()
        ours = {kind: copies(partial(packed, library, pool, weight_RI, kind)) for kind in options.formats}
        theirs = copies(partial(PackedMatmul, weight_RI, None))
        for num_tokens in options.tokens:
            x_TI = torch.randn(num_tokens, num_inputs)
            sides = [Side(f"ours {kind}", matmuls, x_TI) for kind, matmuls in ours.items()]
            sides.append(Side(ONEDNN, theirs, x_TI.bfloat16()))
            case = Case(num_outputs, num_inputs, num_tokens, num_threads)
            for side, seconds in zip(sides, take_turns(sides, options.turns), strict=True):
                row = figures_of(case, side, seconds)
                sys.stdout.write(f"{table_line(row)}\n")
                sys.stdout.flush()
                yield row
    pool.close()


def take_turns(sides: Sequence[Side], num_turns: int) -> list[list[float]]:
    """Return each side's seconds per product, a turn each after the other."""
    for side in sides:
        side.matmuls[0](side.inputs)
    turns = [[side.turn() for side in sides] for _ in range(num_turns)]
    return [list(times) for times in zip(*turns, strict=True)]


def copies(make: Callable[[], Matmul]) -> list[Matmul]:
    """Return the matrix as often as it takes to fill MIN_BYTES."""
    first = make()
    return [first, *(make() for _ in range(MIN_BYTES // first.num_bytes))]


def packed(library: KernelLibrary, pool: ThreadPool, weight_RI: Tensor, kind: str) -> CpuMatmul:
    """Return the weight in a format; int4 codes are random, which costs the same."""
    num_outputs, num_inputs = weight_RI.shape
    weight: Tensor | QuantisedMatrix | None = weight_RI
    if kind == "int8":
        weight = quantise_int8(weight_RI)
    elif kind == "int4":
        groups = (num_outputs, num_inputs // GROUP_SIZE)
        codes_RI = torch.randint(0, 16, weight_RI.shape, dtype=torch.uint8)
        weight = QuantisedMatrix(QuantFormat.INT4, codes_RI, torch.rand(groups).half(), torch.rand(groups).half())
    assert weight is not None, f"{num_inputs} inputs are no whole groups"
    return CpuMatmul(library, pool, _ARENA, weight, None)


def figures_of(case: Case, side: Side, seconds: list[float]) -> dict[str, Any]:
    """Return one row: rates are those of the shortest turn."""
    num_products = case.num_outputs * case.num_inputs * case.num_tokens
    return {
        "side": side.name,
        **case._asdict(),
        "copies": len(side.matmuls),
        "us": {"min": round(min(seconds) * 1e6, 2), **summary([1e6 * s for s in seconds], digits=2)},
        "gb_per_s": round(side.matmuls[0].num_bytes / min(seconds) / 1e9, 2),
        "gflop_per_s": round(2 * num_products / min(seconds) / 1e9, 1),
    }


def table_line(row: dict[str, Any]) -> str:
    """Return the row for people."""
    shape = f"{row['num_outputs']} x {row['num_inputs']}"
    return (
        f"{row['num_threads']} threads  {shape:>12}  {row['num_tokens']:4} tokens  {row['side']:11}"
        f"{row['us']['min']:10.1f} us (p50 {row['us']['p50']:10.1f})"
        f"{row['gb_per_s']:8.1f} GB/s{row['gflop_per_s']:8.0f} GFLOP/s"
    )


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many processes computing; they are gone afterwards."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _compute() -> None:
    while True:
        pass


_ARENA = Arena()

if __name__ == "__main__":
    main()
