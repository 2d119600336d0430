"""Load messages and plans that fit a tiny checkpoint."""

from pathlib import Path

from parallel.plan import Chunk, RowStart, StepPlan
from parallel.rank.messages import Load
from parallel.sampling.params import SamplingParams

GREEDY = SamplingParams(max_tokens=12, seed=0, temperature=0, ignore_eos=True)


def load_of(model: Path | str) -> Load:
    """Return what a leader with 4 rows and 32 blocks of 8 tokens sends."""
    return Load(
        model=str(model),
        revision=None,
        dtype="float32",
        kv_dtype="float32",
        num_blocks=32,
        block_size=8,
        max_rows=4,
        max_model_len=64,
        max_step_tokens=128,
    )


def long_step(step: int) -> StepPlan:
    """Return a plan that prefills 60 tokens in row 0."""
    return StepPlan(step, [Chunk(0, 60)], started=[RowStart(0, [1] * 60, 60, 0, list(range(8)), GREEDY)])
