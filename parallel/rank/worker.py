"""What a rank does with a plan: rows, model, sampler, rows again.

S sampled rows in step.
"""

import logging
import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import EaglerayError, ErrorInfo, ReplicaFailed
from parallel.kv_cache import KVCache
from parallel.plan import Chunk, RowStart, RowToken, SampledTokens, StepPlan, StepResult, pack_integers
from parallel.rank.rows import ExpectedTokens, RowTable, StepInputs
from parallel.rank.stepping import DoneTokens, PendingTokens, StepRunner
from parallel.sampling.params import SamplingParams
from parallel.sampling.rows import SamplingRows
from parallel.sampling.sampler import Sampled

logger = logging.getLogger(__name__)

_NOT_FINITE = ErrorInfo.of(
    ReplicaFailed("the model's logits for this request are not finite, or no token is allowed; the request was ended")
)
_BROKEN_WISHES = ErrorInfo.of(
    EaglerayError("the request's sampling parameters could not be applied; see the log of the replica group")
)
_GREEDY = SamplingParams(max_tokens=1, seed=0, temperature=0)
"""What a row runs on whose own parameters broke."""


class ServedModel(Protocol):
    """What sampling needs to know of a model."""

    @property
    def vocab(self) -> range:
        """Vocabulary rows on this rank."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ...


class LaunchedStep:
    """A step that a device computes."""

    def __init__(self, step: int, expected: ExpectedTokens, tokens: PendingTokens, started_s: float) -> None:
        self.step = step
        self.expected = expected
        self.tokens = tokens
        self.started_s = started_s
        self.sampled: Sampled | None = None
        """Set when the tokens are in the rows."""

    def is_done(self) -> bool:
        """Whether `RankWorker.finish` returns at once."""
        return self.sampled is not None or self.tokens.is_done()


class RankWorker:
    """One rank of a loaded model. Every rank of the group is given the same plans, in the same order."""

    def __init__(
        self,
        model: ServedModel,
        runner: StepRunner,
        kv: KVCache,
        *,
        max_rows: int,
        max_model_len: int,
        block_size: int,
    ) -> None:
        self._runner = runner
        self._kv = kv
        self._rows = RowTable(max_rows, max_model_len, block_size)
        self._sampling = SamplingRows(max_rows, model.vocab, model.eos_token_ids)
        self._under_way: LaunchedStep | None = None
        self._refused: dict[int, ErrorInfo] = {}
        """Rows whose requests are to be told an error instead of their first token."""

    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step. Raises RankDied, OutOfMemory; a row whose logits are not finite fails alone."""
        return self.finish(self.launch(plan))

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Start a step, at most one ahead of what is finished. Raises as `run` does."""
        started_s = time.perf_counter()
        if self._under_way is not None and self._sampling.needs_every_token:
            self._settle(self._under_way)
        self._apply_changes(plan)
        inputs = self._rows.step(plan.chunks, plan.decodes)
        tokens = self._launch(inputs)
        self._under_way = LaunchedStep(plan.step, self._rows.expect_tokens(inputs.sampled_rows_S), tokens, started_s)
        return self._under_way

    @torch.inference_mode()
    def finish(self, launched: LaunchedStep) -> StepResult:
        """Return a launched step's tokens; blocks. Steps are finished in the order in which they were launched."""
        sampled = self._settle(launched)
        tokens = _packed(launched.expected.rows_S, sampled, self._refused)
        return StepResult(launched.step, tokens, time.perf_counter() - launched.started_s)

    def warm_up(self, num_tokens: int) -> None:
        """Run a prefill of `num_tokens` and a decode step, then leave rows and KV cache as new. A collective."""
        sampling = SamplingParams(max_tokens=2, seed=0, top_p=0.9)
        num_blocks = -(-(num_tokens + 1) // self._rows.block_size)
        start = RowStart(0, [0] * num_tokens, num_tokens, 0, list(range(num_blocks)), sampling)
        self.run(StepPlan(0, [Chunk(0, num_tokens)], started=[start]))
        self.run(StepPlan(1, None))
        self.run(StepPlan(2, [], freed=[0]))
        self._kv.clear(num_blocks)

    def _apply_changes(self, plan: StepPlan) -> None:
        for row in plan.freed:
            self._sampling.free(row)
            self._refused.pop(row, None)
        for start in plan.started:
            self._rows.start(start)
            self._start_sampling(start)
        for appended in plan.appended:
            self._rows.append_blocks(appended)

    def _start_sampling(self, start: RowStart) -> None:
        tokens = self._rows.tokens_of(start.row)
        self._refused.pop(start.row, None)
        try:
            self._sampling.start(start.row, start.sampling, tokens, start.num_prompt_tokens)
        except Exception:
            # The boundary around one request's wishes: they were checked, so this is a bug, and its alone. The row runs
            # until the leader has heard, so that every rank goes on with the same rows.
            logger.exception("sampling parameters broke", extra={"row": start.row})
            self._refused[start.row] = _BROKEN_WISHES
            self._sampling.start(start.row, _GREEDY, tokens, start.num_prompt_tokens)

    def _launch(self, inputs: StepInputs) -> PendingTokens:
        if not len(inputs.token_ids_T):
            return DoneTokens(Sampled.nothing())
        return self._runner.launch(inputs, self._sampling.select(inputs.sampled_rows_S, inputs.num_tokens_S))

    def _settle(self, launched: LaunchedStep) -> Sampled:
        """Wait for a step's tokens and let the rows have them."""
        if launched.sampled is None:
            launched.sampled = launched.tokens.wait()
            # A failed row gets token 0, so that a plan already under way still finds it one token longer.
            is_alive_S = self._rows.fill(launched.expected, launched.sampled.token_ids_S)
            rows_S, token_ids_S = launched.expected.rows_S, launched.sampled.token_ids_S
            self._sampling.append(rows_S[is_alive_S], token_ids_S[is_alive_S])
            if launched is self._under_way:
                self._under_way = None
        return launched.sampled


def _packed(rows_S: NDArray[np.int64], sampled: Sampled, refused: Mapping[int, ErrorInfo]) -> SampledTokens:
    if not len(rows_S):
        return SampledTokens()
    remarkable = {*sampled.logprobs, *sampled.is_failed_S.nonzero()[0].tolist()}
    if refused:
        remarkable.update(index for index, row in enumerate(rows_S.tolist()) if row in refused)
    remarks = [
        RowToken(
            int(rows_S[index]),
            int(sampled.token_ids_S[index]),
            sampled.logprobs.get(index),
            _NOT_FINITE if sampled.is_failed_S[index] else refused.get(int(rows_S[index])),
        )
        for index in sorted(remarkable)
    ]
    return SampledTokens(pack_integers(rows_S), pack_integers(sampled.token_ids_S), remarks)
