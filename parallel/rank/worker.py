"""What a rank does with a plan: rows, model, sampler, rows again.

S sampled rows in step.
"""

import time

import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import ErrorInfo, ReplicaFailed
from parallel.attention.base import AttentionBackend, AttentionBatch, StepContext
from parallel.groups.base import TPGroup
from parallel.kv_cache import KVCache
from parallel.models.decoder import CausalLM
from parallel.plan import Chunk, RowStart, RowToken, StepPlan, StepResult
from parallel.rank.rows import RowTable, StepInputs
from parallel.sampling.params import SamplingParams
from parallel.sampling.rows import SamplingRows
from parallel.sampling.sampler import Sampled, Sampler

_NOT_FINITE = ErrorInfo.of(
    ReplicaFailed("the model's logits for this request are not finite, or no token is allowed; the request was ended")
)


class RankWorker:
    """One rank of a loaded model. Every rank of the group is given the same plans, in the same order."""

    def __init__(
        self,
        model: CausalLM,
        backend: AttentionBackend,
        kv: KVCache,
        group: TPGroup,
        device: torch.device,
        *,
        max_rows: int,
        max_model_len: int,
        block_size: int,
    ) -> None:
        """Construction is a collective, as `run` is."""
        self._model = model
        self._backend = backend
        self._kv = kv
        self._device = device
        self._rows = RowTable(max_rows, max_model_len, block_size)
        self._sampling = SamplingRows(max_rows, model.vocab, model.spec.eos_token_ids)
        self._sampler = Sampler(group, model.vocab, device)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Compute one step. Raises RankDied, OutOfMemory; a row whose logits are not finite fails alone."""
        started_s = time.perf_counter()
        self._apply_changes(plan)
        inputs = self._rows.step(plan.chunks)
        tokens = self._compute(inputs) if len(inputs.token_ids_T) else []
        return StepResult(plan.step, tokens, time.perf_counter() - started_s)

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

    def _compute(self, inputs: StepInputs) -> list[RowToken]:
        batch = AttentionBatch(
            query_lens=tuple(inputs.query_lens_B.tolist()),
            context_lens=tuple(inputs.context_lens_B.tolist()),
            slots_T=self._put(inputs.slots_T),
            block_table_BM=self._put(inputs.block_table_BM),
        )
        context = StepContext(batch, self._kv.layers, self._backend)
        hidden_TD = self._model.forward(self._put(inputs.token_ids_T), self._put(inputs.positions_T), context)
        rows_S = inputs.sampled_rows_S
        if not len(rows_S):
            return []
        logits_SV = self._model.logits(hidden_TD[self._put(inputs.last_token_S)])
        sampled = self._sampler.sample(logits_SV, self._sampling.select(rows_S, inputs.num_tokens_S))
        # A failed row gets token 0, so that a plan already under way still finds it one token longer.
        self._rows.append_tokens(rows_S, sampled.token_ids_S)
        self._sampling.append(rows_S, sampled.token_ids_S)
        return _row_tokens(rows_S, sampled)

    def _put(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def _row_tokens(rows_S: NDArray[np.int64], sampled: Sampled) -> list[RowToken]:
    pairs = zip(rows_S.tolist(), sampled.token_ids_S.tolist(), strict=True)
    if not sampled.logprobs and not sampled.is_failed_S.any():
        return [RowToken(row, token_id) for row, token_id in pairs]
    return [
        RowToken(row, token_id, sampled.logprobs.get(index), _NOT_FINITE if sampled.is_failed_S[index] else None)
        for index, (row, token_id) in enumerate(pairs)
    ]
