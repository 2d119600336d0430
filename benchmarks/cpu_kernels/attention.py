"""Paged attention of the CPU tier, and torch's attention over gathered blocks (tier 0), taking turns.

    python -m benchmarks.cpu_kernels.attention                     # one thread and all, then --json for the file
    python -m benchmarks.cpu_kernels.attention --threads 1 --cases prefill shared

The heads are SmolLM2-135M's and there are as many layers, so decoding reads more than caches hold and its limit is
memory: `gb_per_s` counts each block once, to be held against the machine's own `read_gb_per_s`. Blocks of 16 tokens are
drawn at random, as in a pool that has been in use, unless a case says otherwise. Times are of all layers.

T tokens, H query heads, E head dim.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers.bandwidth import measure_once
from benchmarks.report import shown, summary, write_report
from parallel.attention.base import AttentionBatch, KVLayout, LayerKV
from parallel.cpu.library import KernelLibrary
from parallel.cpu.ops import CpuOps
from parallel.cpu.threads import ThreadPool
from parallel.kv_cache import KVCache
from parallel.ops.base import Ops
from parallel.ops.torch_ops import TorchOps

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 30, 9, 3, 64, 16
SCALE = HEAD_DIM**-0.5


class Case(NamedTuple):
    """The rows of a step."""

    name: str
    num_rows: int
    query_len: int
    context_len: int
    num_shared: int = 0
    """Tokens at the start that all rows have in the same blocks."""
    is_shuffled: bool = True

    @property
    def num_blocks(self) -> int:
        """Blocks that the rows read, each counted once."""
        shared = self.num_shared // BLOCK_SIZE
        return shared + self.num_rows * (-(-self.context_len // BLOCK_SIZE) - shared)

    @property
    def num_products(self) -> int:
        """Multiplications of queries by keys and of weights by values, in all layers."""
        first = self.context_len - self.query_len
        num_keys = sum(range(first + 1, self.context_len + 1)) * self.num_rows
        return 2 * num_keys * NUM_HEADS * HEAD_DIM * NUM_LAYERS

    def batch(self) -> AttentionBatch:
        """Return the step, with block ids of its own."""
        ids = list(range(self.num_blocks))
        if self.is_shuffled:
            random.Random(0).shuffle(ids)
        shared = ids[: self.num_shared // BLOCK_SIZE]
        own = torch.tensor(ids[len(shared) :], dtype=torch.int64).view(self.num_rows, -1)
        table = torch.cat((torch.tensor(shared, dtype=torch.int64).expand(self.num_rows, -1), own), dim=1)
        slots_T = torch.zeros(self.num_rows * self.query_len, dtype=torch.int64)
        return AttentionBatch(
            (self.query_len,) * self.num_rows, (self.context_len,) * self.num_rows, slots_T, table.contiguous()
        )


CASES = (
    Case("decode", 1, 1, 128),
    Case("decode", 1, 1, 2048),
    Case("decode", 8, 1, 1024),
    Case("decode", 32, 1, 256),
    Case("decode", 32, 1, 1024),
    Case("decode, blocks in order", 32, 1, 1024, is_shuffled=False),
    Case("shared", 32, 1, 950, num_shared=896),
    Case("prefill", 1, 128, 128),
    Case("prefill", 1, 512, 512),
    Case("extend", 1, 512, 2048),
    Case("extend", 32, 50, 950, num_shared=896),
)


class Side(NamedTuple):
    """One tier over its own cache."""

    name: str
    ops: Ops
    layers: Sequence[LayerKV]
    queries: Tensor
    """q_THE."""
    batch: AttentionBatch
    num_bytes: int

    def turn(self) -> "Turn":
        """Attend in every layer once."""
        start, start_cpu = time.perf_counter(), time.process_time()
        for kv in self.layers:
            self.ops.attend(self.queries, kv, self.batch, SCALE)
        return Turn(time.perf_counter() - start, time.process_time() - start_cpu)


class Turn(NamedTuple):
    """Seconds of all layers."""

    wall: float
    cpu: float
    """Of all threads."""


def main() -> None:
    """Measure and print; with --json write the results file."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument(
        "--cases", nargs="+", default=["decode", "shared", "prefill", "extend"], help="by their first word"
    )
    cli.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    cli.add_argument("--turns", type=int, default=7, help="of each side (7)")
    cli.add_argument("--level", help="instruction-set level of our kernels (the best)")
    cli.add_argument("--json", action="store_true", help="write benchmarks/results/<date>-attention.json")
    options = cli.parse_args()
    started_at = datetime.now(UTC)
    library = KernelLibrary.load(options.level)
    bandwidth = measure_once().in_gb_per_s()
    sys.stdout.write(f"level {library.level}, reads {bandwidth} GB/s\n")
    cases = [case for case in CASES if case.name.split(",")[0] in options.cases]
    rows = [row for threads in options.threads for row in measure_all(library, cases, threads, options.turns)]
    if options.json:
        figures = {"level": library.level, "read_gb_per_s": bandwidth, "layers": NUM_LAYERS, "attention": rows}
        sys.stdout.write(f"wrote {shown(write_report('attention', started_at, figures))}\n")


def measure_all(
    library: KernelLibrary, cases: Sequence[Case], num_threads: int, num_turns: int
) -> Iterator[dict[str, Any]]:
    """Yield a row of figures per side and case."""
    torch.set_num_threads(num_threads)
    pool = ThreadPool(library, num_threads)
    for case in cases:
        batch = case.batch()
        sides = [
            side("ours bf16", CpuOps(library, pool), torch.bfloat16, case, batch),
            side("ours int8", CpuOps(library, pool), torch.int8, case, batch),
            side("tier 0", TorchOps(torch.bfloat16), torch.bfloat16, case, batch),
        ]
        for one_side, turns in zip(sides, take_turns(sides, num_turns), strict=True):
            row = figures_of(case, num_threads, one_side, turns)
            sys.stdout.write(f"{table_line(row)}\n")
            sys.stdout.flush()
            yield row
    pool.close()


def take_turns(sides: Sequence[Side], num_turns: int) -> list[list[Turn]]:
    """Return each side's turns, one after the other's; the first is not counted."""
    turns = [[side.turn() for side in sides] for _ in range(num_turns + 1)][1:]
    return [list(of_side) for of_side in zip(*turns, strict=True)]


def side(name: str, ops: Ops, dtype: torch.dtype, case: Case, batch: AttentionBatch) -> Side:
    """Return a tier with a cache of random numbers."""
    layout = ops.kv_layout(BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, dtype)
    cache = KVCache(NUM_LAYERS, case.num_blocks, layout, torch.device("cpu"))
    for kv in cache.layers:
        fill(kv, layout)
    width = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    qkv_TR = torch.randn(len(batch.slots_T), width).to(ops.activation_dtype)
    q_THE = qkv_TR.unflatten(1, (-1, HEAD_DIM))[:, :NUM_HEADS]
    return Side(name, ops, cache.layers, q_THE, batch, cache.num_bytes)


def fill(kv: LayerKV, layout: KVLayout) -> None:
    """Write random numbers (mutates)."""
    for codes in (kv.key, kv.value):
        codes.copy_(torch.randint_like(codes, -127, 128) if layout.dtype == torch.int8 else torch.randn_like(codes))
    for scale in (kv.key_scale, kv.value_scale):
        if scale is not None:
            scale.fill_(1 / 64)


def figures_of(case: Case, num_threads: int, side: Side, turns: list[Turn]) -> dict[str, Any]:
    """Return one row: rates are those of the shortest turn."""
    shortest_s = min(turn.wall for turn in turns)
    return {
        "side": side.name,
        **case._asdict(),
        "num_threads": num_threads,
        "ms": {"min": round(shortest_s * 1e3, 3), **summary([1e3 * turn.wall for turn in turns], digits=3)},
        "cpu_ms": round(min(turn.cpu for turn in turns) * 1e3, 3),
        "gb_per_s": round(side.num_bytes / shortest_s / 1e9, 2),
        "gflop_per_s": round(2 * case.num_products / shortest_s / 1e9, 1),
    }


def table_line(row: dict[str, Any]) -> str:
    """Return the row for people."""
    return (
        f"{row['num_threads']} threads  {row['name']:23} {row['num_rows']:2} x {row['query_len']:3} of"
        f" {row['context_len']:4}  {row['side']:9}{row['ms']['min']:9.2f} ms (p50 {row['ms']['p50']:9.2f},"
        f" CPU {row['cpu_ms']:9.2f}){row['gb_per_s']:7.1f} GB/s{row['gflop_per_s']:6.0f} GFLOP/s"
    )


if __name__ == "__main__":
    main()
