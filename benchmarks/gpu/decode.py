"""Decode steps and prompts of random-weight models against what the card can do; attention by itself.

B rows, M blocks of a row.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from benchmarks.gpu.bounds import Rates, decode_bytes, prefill_flops, share
from benchmarks.gpu.random_model import BLOCK_SIZE, RandomRank, Settings, random_rank, run_ahead
from benchmarks.gpu.rig import Rig
from benchmarks.gpu.sections import Figures, Row
from parallel.attention.base import LayerKV
from parallel.cuda.batch import CudaBatch
from parallel.models.spec import ModelSpec
from parallel.plan import Chunk, RowStart, StepPlan, pack_integers
from parallel.sampling.params import SamplingParams

_WARM_STEPS = 4
_CALLS = 8
"""Of attention in a recording, so that what a replay costs is not what is measured."""


class Sizes(NamedTuple):
    """What of a model is measured."""

    batches: tuple[int, ...] = (1, 32, 256)
    """Rows of decode steps."""
    context_len: int = 1024
    """Of each row when steps begin."""
    num_steps: int = 48
    """That are timed; each makes contexts a token longer."""
    prompt_len: int = 8192

    @property
    def blocks_of_row(self) -> int:
        """KV blocks that a decoding row comes to have."""
        return _blocks(self.context_len + self.num_steps + _WARM_STEPS)


class ModelRows:
    """The rows of one model in one pair of formats; the model is made with the first and let go after the last."""

    def __init__(self, rig: Rig, rates: Rates, spec: ModelSpec, formats: tuple[str, str], sizes: Sizes) -> None:
        self._rig = rig
        self._rates = rates
        self._spec = spec
        self._weight_format, self._kv_format = formats
        self._sizes = sizes
        self._rank: RandomRank | None = None

    def rows(self, name: str) -> Iterator[Row]:
        """Yield recording, decode at each batch size, and a prompt."""
        label = f"{name} {self._weight_format}, KV {self._kv_format}"
        yield Row(f"{label}: load and record", self._prepare)
        for num_rows in self._sizes.batches:
            yield Row(f"{label}: decode {num_rows}", lambda num_rows=num_rows: self._decode(num_rows))
        yield Row(f"{label}: prefill {self._sizes.prompt_len}", self._prefill)
        self._rank = None

    def _prepare(self) -> Figures:
        sizes, max_rows = self._sizes, max(self._sizes.batches)
        max_model_len = max(sizes.prompt_len, sizes.blocks_of_row * BLOCK_SIZE)
        num_blocks = max(max_rows * sizes.blocks_of_row, _blocks(sizes.prompt_len))
        settings = Settings(self._weight_format, self._kv_format, max_rows, max_model_len, num_blocks)
        before, started_s = self._rig.allocated_bytes(), time.monotonic()
        self._rank = random_rank(self._rig, self._spec, settings)
        self._rig.synchronize()
        taken = self._rig.allocated_bytes() - before
        kv_bytes = self._rank.kv.num_bytes
        return {
            "seconds": round(time.monotonic() - started_s, 1),
            "weights_gib": round(self._rank.model.weight_bytes / 2**30, 2),
            "kv_gib": round(kv_bytes / 2**30, 2),
            "beside_them_gib": round((taken - kv_bytes - self._rank.model.weight_bytes) / 2**30, 2),
        }

    def _decode(self, num_rows: int) -> Figures:
        """Measure steps launched one ahead, from host to host, and then the recorded step alone."""
        rank, sizes = self._made(), self._sizes
        num_steps = sizes.num_steps
        rank.worker.run(StepPlan(0, [], freed=list(range(num_rows))))
        started = [_with_context(row, sizes.context_len, sizes.blocks_of_row) for row in range(num_rows)]
        rank.worker.run(StepPlan(0, [], decodes=pack_integers(range(num_rows)), started=started))
        run_ahead(rank.worker, [StepPlan(step, None) for step in range(_WARM_STEPS)])
        started_s = time.perf_counter()
        run_ahead(rank.worker, [StepPlan(step, None) for step in range(num_steps)])
        step_s = (time.perf_counter() - started_s) / num_steps
        replay_s = self._rig.seconds_of(rank.runner.recorded_step(num_rows), num_steps)
        middle_len = sizes.context_len + _WARM_STEPS + num_steps // 2
        least = decode_bytes(self._spec, self._weight_format, self._kv_format, num_rows, middle_len)
        return {
            "tokens_per_s": round(num_rows / step_s, 1),
            "step_ms": round(step_s * 1e3, 4),
            "replay_ms": round(replay_s * 1e3, 4),
            "step_over_replay": round(step_s / replay_s, 4),
            "share_of_bandwidth": share(least / self._rates.copy_bytes_per_s, step_s),
        }

    def _prefill(self, repeats: int = 3) -> Figures:
        """Measure one prompt in one step, from host to host; the fastest of a few, after one that compiles."""
        worker, prompt_len = self._made().worker, self._sizes.prompt_len
        block_ids = list(range(_blocks(prompt_len)))
        seconds: list[float] = []
        for step in range(repeats + 1):
            start = RowStart(0, [7] * prompt_len, prompt_len, 0, block_ids, _sampling(0))
            started_s = time.perf_counter()
            worker.run(StepPlan(step, [Chunk(0, prompt_len)], freed=[0], started=[start]))
            seconds.append(time.perf_counter() - started_s)
        least_s = prefill_flops(self._spec, prompt_len) / self._rates.matmul_flops_per_s
        return {
            "tokens_per_s": round(prompt_len / min(seconds[1:]), 1),
            "first_ms": round(seconds[0] * 1e3, 2),
            "ms": round(min(seconds[1:]) * 1e3, 2),
            "share_of_matmul_rate": share(least_s, min(seconds[1:])),
        }

    def _made(self) -> RandomRank:
        if self._rank is None:
            raise RuntimeError("the model could not be made; see its first row")
        return self._rank


def decode_attention(rig: Rig, rates: Rates, num_rows: int, context_len: int, heads: tuple[int, int, int]) -> Figures:
    """Measure decode attention alone; `heads`: query heads, kv heads, head dim."""
    num_heads, num_kv_heads, head_dim = heads
    num_blocks = _blocks(context_len)
    shape = (num_rows * num_blocks, BLOCK_SIZE, num_kv_heads, head_dim)
    kv = LayerKV(*(torch.randn(shape, device=rig.device, dtype=rig.dtype) for _ in range(2)))
    table_BM = torch.randperm(num_rows * num_blocks, device=rig.device).view(num_rows, num_blocks)
    slots_B = torch.full((num_rows,), -1, device=rig.device)
    batch = CudaBatch.decoding(slots_B, table_BM, torch.full_like(slots_B, context_len, dtype=torch.int32))
    q_BHE = torch.randn(num_rows, num_heads, head_dim, device=rig.device, dtype=rig.dtype)
    ops = rig.ops()

    def attend() -> None:
        for _ in range(_CALLS):
            ops.attend(q_BHE, kv, batch, head_dim**-0.5)

    replay = rig.on.record(attend)
    seconds = rig.seconds_of(replay, 20) / _CALLS
    num_bytes = 2 * num_rows * context_len * num_kv_heads * head_dim * rig.dtype.itemsize
    return {"ms": round(seconds * 1e3, 4), "share_of_bandwidth": share(num_bytes / rates.copy_bytes_per_s, seconds)}


def _with_context(row: int, context_len: int, num_blocks: int) -> RowStart:
    """Return a row whose context but for its last token is in the cache, as after a prefix hit."""
    block_ids = list(range(row * num_blocks, (row + 1) * num_blocks))
    return RowStart(row, [7] * context_len, context_len, context_len - 1, block_ids, _sampling(row))


def _sampling(row: int) -> SamplingParams:
    return SamplingParams(max_tokens=10**6, seed=row, temperature=0.8, ignore_eos=True)


def _blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)
