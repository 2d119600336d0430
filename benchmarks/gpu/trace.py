"""A mixed trace through a rank: 256 requests at once, lengths uniform in 100 to 1024, seed 0.

It is the trace of nano-vllm and mini-sglang. The driver plans as a scheduler would, whole prompts as far as a step's
budget goes beside all decodes, and knows no end-of-sequence tokens, so that it can plan ahead without results.
"""

import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.gpu.random_model import BLOCK_SIZE, Settings, random_rank, run_ahead
from benchmarks.gpu.rig import Rig
from benchmarks.gpu.sections import Figures
from parallel.models.spec import ModelSpec
from parallel.plan import BlocksAppended, Chunk, RowStart, StepPlan, pack_integers
from parallel.sampling.params import SamplingParams


@dataclass(frozen=True)
class TraceRequest:
    """How long a request is."""

    prompt_len: int
    output_len: int


@dataclass
class _Running:
    request: TraceRequest
    num_tokens: int
    """Planned: the prompt, and every output token that a step under way samples."""
    num_blocks: int

    @property
    def is_over(self) -> bool:
        return self.num_tokens == self.request.prompt_len + self.request.output_len


def mixed_requests(count: int, shortest: int = 100, longest: int = 1024, seed: int = 0) -> list[TraceRequest]:
    """Return the trace."""
    dice = random.Random(seed)
    return [TraceRequest(dice.randint(shortest, longest), dice.randint(shortest, longest)) for _ in range(count)]


class TracePlanner:
    """Plans the steps of a trace; what a leader does, without requests that come or go in between."""

    def __init__(self, requests: list[TraceRequest], max_rows: int, max_step_tokens: int, num_blocks: int) -> None:
        """`num_blocks` must hold all requests that can run at once. No prompt may be longer than a step."""
        self._waiting = deque(requests)
        self._free_rows = list(reversed(range(max_rows)))
        self._free_blocks = list(reversed(range(num_blocks)))
        self._blocks_of: dict[int, list[int]] = {}
        self._running: dict[int, _Running] = {}
        self._max_step_tokens = max_step_tokens

    def plans(self) -> Iterator[StepPlan]:
        """Yield steps until every request has all its tokens."""
        step = 0
        while self._waiting or self._running:
            freed = [row for row, running in self._running.items() if running.is_over]
            for row in freed:
                self._free(row)
            decodes = list(self._running)
            appended = [self._grow(row) for row in decodes if self._is_full(row)]
            for row in decodes:
                self._running[row].num_tokens += 1
            started = self._admit(self._max_step_tokens - len(decodes))
            chunks = [Chunk(start.row, len(start.token_ids)) for start in started]
            if decodes or chunks or freed:
                yield StepPlan(step, chunks, freed, started, appended, pack_integers(decodes))
            step += 1

    def _is_full(self, row: int) -> bool:
        """Whether the next token to be computed, the last that is planned, has no block yet."""
        running = self._running[row]
        return running.num_tokens > running.num_blocks * BLOCK_SIZE

    def _grow(self, row: int) -> BlocksAppended:
        self._running[row].num_blocks += 1
        return BlocksAppended(row, self._take_blocks(row, 1))

    def _admit(self, budget: int) -> list[RowStart]:
        started: list[RowStart] = []
        while self._waiting and self._free_rows and self._waiting[0].prompt_len <= budget:
            request, row = self._waiting.popleft(), self._free_rows.pop()
            budget -= request.prompt_len
            num_blocks = -(-request.prompt_len // BLOCK_SIZE)
            # The prompt's own step samples the first token.
            self._running[row] = _Running(request, request.prompt_len + 1, num_blocks)
            self._blocks_of[row] = []
            sampling = SamplingParams(max_tokens=request.output_len, seed=row, temperature=0.8, ignore_eos=True)
            token_ids = [7] * request.prompt_len
            started.append(
                RowStart(row, token_ids, request.prompt_len, 0, self._take_blocks(row, num_blocks), sampling)
            )
        return started

    def _take_blocks(self, row: int, count: int) -> list[int]:
        taken = [self._free_blocks.pop() for _ in range(count)]
        self._blocks_of[row] += taken
        return taken

    def _free(self, row: int) -> None:
        # At once, although the row's last step may be under way: the device computes steps in their order.
        del self._running[row]
        self._free_blocks += self._blocks_of.pop(row)
        self._free_rows.append(row)


def measure_trace(
    rig: Rig, spec: ModelSpec, requests: list[TraceRequest], max_rows: int, max_step_tokens: int
) -> Figures:
    """Run the trace one step ahead; time is from the first launch to the last token on the host."""
    longest = max(request.prompt_len + request.output_len for request in requests)
    blocks = sorted((-(-(request.prompt_len + request.output_len) // BLOCK_SIZE) for request in requests), reverse=True)
    num_blocks = sum(blocks[:max_rows])
    rank = random_rank(rig, spec, Settings("bf16", "bf16", max_rows, longest, num_blocks))
    # Kernels of prompts are compiled here, not in what is timed.
    rank.worker.warm_up(min(max_step_tokens, longest - 1))
    rig.synchronize()
    started_s = time.perf_counter()
    results = run_ahead(rank.worker, TracePlanner(requests, max_rows, max_step_tokens, num_blocks).plans())
    seconds = time.perf_counter() - started_s
    num_outputs = sum(len(result.tokens) for result in results)
    assert num_outputs == sum(request.output_len for request in requests), "a request lacks tokens"
    return {
        "requests": len(requests),
        "prompt_tokens": sum(request.prompt_len for request in requests),
        "output_tokens": num_outputs,
        "seconds": round(seconds, 3),
        "output_tokens_per_s": round(num_outputs / seconds, 1),
        "steps": len(results),
        "mean_rows": round(num_outputs / len(results), 1),
    }
