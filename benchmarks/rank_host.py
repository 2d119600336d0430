"""Host time of a rank's decode step outside the model: rows, inputs, sampler on a tiny vocabulary, result.

    python -m benchmarks.rank_host
    python -m benchmarks.rank_host --vocabulary 49152 --json      # with the sampler's real work

The model is a stub whose forward and logits return what was made before, so what is left is what the device would
wait for. One thread.
"""

import argparse
import json
import sys
import time
from datetime import UTC, datetime

import torch

from benchmarks.report import shown, summary, write_report
from parallel.attention.base import KVLayout
from parallel.groups.solo import SoloGroup
from parallel.kv_cache import KVCache
from parallel.plan import BlocksAppended, Chunk, RowStart, StepPlan
from parallel.rank.rows import StepInputs
from parallel.rank.stepping import DirectRunner
from parallel.rank.worker import RankWorker
from parallel.sampling.params import SamplingParams
from parallel.sampling.sampler import Sampler

BLOCK_SIZE = 16
PROMPT_TOKENS = 512
CPU = torch.device("cpu")
SAMPLINGS = {
    "greedy": SamplingParams(max_tokens=1, seed=1, temperature=0),
    "temperature": SamplingParams(max_tokens=1, seed=1, temperature=0.8),
    "top_p": SamplingParams(max_tokens=1, seed=1, temperature=0.8, top_p=0.9),
    "penalties": SamplingParams(max_tokens=1, seed=1, temperature=0, frequency_penalty=0.5),
}


class StubModel:
    """Stands in for a model and its forward pass; its logits never change, apart from what the sampler does."""

    name = "stub"
    eos_token_ids: tuple[int, ...] = ()

    def __init__(self, num_rows: int, vocabulary: int) -> None:
        self.vocab = range(vocabulary)
        # Peaked as a language model's logits are, so that a nucleus is a few tokens.
        self._logits_SV = torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(0)) * 4

    def logits(self, inputs: StepInputs) -> torch.Tensor:
        """Return the logits made at construction."""
        return self._logits_SV


def time_steps(num_rows: int, vocabulary: int, sampling: SamplingParams, num_steps: int) -> list[float]:
    """Return the microseconds of each steady decode step."""
    model = StubModel(num_rows, vocabulary)
    worker = RankWorker(
        model,
        DirectRunner(model, Sampler(SoloGroup(), model.vocab, CPU)),
        KVCache(0, 0, KVLayout((), (), None, torch.float32), CPU),
        max_rows=num_rows,
        max_model_len=PROMPT_TOKENS + num_steps,
        block_size=BLOCK_SIZE,
    )
    # Every row at another place in its block, as in real traffic: each step, one row in sixteen needs a new one.
    lengths = [PROMPT_TOKENS - row % BLOCK_SIZE for row in range(num_rows)]
    started = [
        RowStart(row, [1] * length, length, 0, list(range(PROMPT_TOKENS // BLOCK_SIZE)), sampling)
        for row, length in enumerate(lengths)
    ]
    worker.run(StepPlan(0, [Chunk(row, length) for row, length in enumerate(lengths)], started=started))
    times_us: list[float] = []
    for step in range(1, num_steps):
        grown = [row for row, length in enumerate(lengths) if (length + step - 1) % BLOCK_SIZE == 0]
        plan = StepPlan(step, None, appended=[BlocksAppended(row, [step]) for row in grown])
        began_ns = time.perf_counter_ns()
        worker.run(plan)
        times_us.append((time.perf_counter_ns() - began_ns) / 1e3)
    return times_us[len(times_us) // 5 :]


def main() -> None:
    """Measure, and write the figures as text, JSON or a results file."""
    options = parse_options()
    started_at = datetime.now(UTC)
    torch.set_num_threads(1)
    rows = [
        {
            "rows": num_rows,
            "sampling": name,
            "step_us": summary(time_steps(num_rows, options.vocabulary, sampling, options.steps), digits=1),
        }
        for num_rows in options.rows
        for name, sampling in SAMPLINGS.items()
    ]
    report = {"vocabulary": options.vocabulary, "steps": rows}
    if options.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        for row in rows:
            sys.stdout.write(f"{row['rows']} rows, {row['sampling']}: {row['step_us']}\n")
    if options.save:
        name = f"rank-host-{options.vocabulary}"
        sys.stdout.write(f"wrote {shown(write_report(name, started_at, report))}\n")


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--vocabulary", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", action="store_true", help="write the figures to standard output as JSON")
    parser.add_argument("--save", action="store_true", help="write a results file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
