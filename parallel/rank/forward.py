"""The forward pass of a step, from a rank's rows to logits.

S rows that sample, V vocabulary rows on this rank.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel.attention.base import AttentionBatch, StepContext
from parallel.kv_cache import KVCache
from parallel.models.decoder import CausalLM
from parallel.rank.rows import StepInputs


class Forward(Protocol):
    """How a rank computes a step of a loaded model."""

    name: str
    """For `OpChoice`."""

    def logits(self, inputs: StepInputs) -> Tensor:
        """Write the step's KV; return float32 logits_SV of the rows that sample, valid until the next step.

        A collective. The sampler may overwrite the result.
        """
        ...


class OpByOp:
    """Calls the model's layers, which call one operation after another."""

    name = "op by op"

    def __init__(self, model: CausalLM, kv: KVCache, device: torch.device) -> None:
        self._model = model
        self._kv = kv
        self._device = device

    def logits(self, inputs: StepInputs) -> Tensor:
        """Return logits_SV."""
        batch = AttentionBatch(
            query_lens=tuple(inputs.query_lens_B.tolist()),
            context_lens=tuple(inputs.context_lens_B.tolist()),
            slots_T=self._put(inputs.slots_T),
            block_table_BM=self._put(inputs.block_table_BM),
        )
        context = StepContext(batch, self._kv.layers)
        hidden_TD = self._model.forward(self._put(inputs.token_ids_T), self._put(inputs.positions_T), context)
        return self._model.logits(hidden_TD[self._put(inputs.last_token_S)])

    def _put(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)
