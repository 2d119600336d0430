"""What a rank does with a plan: rows, model, sampler, rows again.

S sampled rows in step.
"""

import time
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import ErrorInfo, ReplicaFailed
from parallel.groups.base import TPGroup
from parallel.kv_cache import KVCache
from parallel.plan import Chunk, RowStart, RowToken, SampledTokens, StepPlan, StepResult, pack_integers
from parallel.rank.forward import Forward
from parallel.rank.rows import RowTable, StepInputs
from parallel.sampling.params import SamplingParams
from parallel.sampling.rows import SamplingRows
from parallel.sampling.sampler import Sampled, Sampler

_NOT_FINITE = ErrorInfo.of(
    ReplicaFailed("the model's logits for this request are not finite, or no token is allowed; the request was ended")
)


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


class RankWorker:
    """One rank of a loaded model. Every rank of the group is given the same plans, in the same order."""

    def __init__(
        self,
        model: ServedModel,
        forward: Forward,
        kv: KVCache,
        group: TPGroup,
        device: torch.device,
        *,
        max_rows: int,
        max_model_len: int,
        block_size: int,
    ) -> None:
        """Construction is a collective, as `run` is."""
        self._forward = forward
        self._kv = kv
        self._rows = RowTable(max_rows, max_model_len, block_size)
        self._sampling = SamplingRows(max_rows, model.vocab, model.eos_token_ids)
        self._sampler = Sampler(group, model.vocab, device)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step. Raises RankDied, OutOfMemory; a row whose logits are not finite fails alone."""
        started_s = time.perf_counter()
        self._apply_changes(plan)
        inputs = self._rows.step(plan.chunks, plan.decodes)
        sampled = self._compute(inputs) if len(inputs.token_ids_T) else SampledTokens()
        return StepResult(plan.step, sampled, time.perf_counter() - started_s)

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
        for start in plan.started:
            self._rows.start(start)
            self._sampling.start(start.row, start.sampling, self._rows.tokens_of(start.row), start.num_prompt_tokens)
        for appended in plan.appended:
            self._rows.append_blocks(appended)

    def _compute(self, inputs: StepInputs) -> SampledTokens:
        logits_SV = self._forward.logits(inputs)
        rows_S = inputs.sampled_rows_S
        if not len(rows_S):
            return SampledTokens()
        sampled = self._sampler.sample(logits_SV, self._sampling.select(rows_S, inputs.num_tokens_S))
        # A failed row gets token 0, so that a plan already under way still finds it one token longer.
        self._rows.append_tokens(rows_S, sampled.token_ids_S)
        self._sampling.append(rows_S, sampled.token_ids_S)
        return _packed(rows_S, sampled)


def _packed(rows_S: NDArray[np.int64], sampled: Sampled) -> SampledTokens:
    remarkable = sorted({*sampled.logprobs, *sampled.is_failed_S.nonzero()[0].tolist()})
    remarks = [
        RowToken(
            int(rows_S[index]),
            int(sampled.token_ids_S[index]),
            sampled.logprobs.get(index),
            _NOT_FINITE if sampled.is_failed_S[index] else None,
        )
        for index in remarkable
    ]
    return SampledTokens(pack_integers(rows_S), pack_integers(sampled.token_ids_S), remarks)
