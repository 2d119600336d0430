"""The decoder that Llama, Mistral, Qwen2 and Qwen3 share.

T tokens in step, S sampled positions, V vocabulary rows on this rank, D model dim.
"""

from torch import Tensor, nn

from parallel.attention.base import StepContext
from parallel.models.spec import ModelSpec


class CausalLM(nn.Module):
    """One rank's part of a decoder-only language model."""

    spec: ModelSpec
    vocab: range
    """Vocabulary rows that `logits` covers on this rank."""

    @property
    def num_layers(self) -> int:
        """Decoder layers, each with its own KV."""
        return self.spec.num_layers

    def forward(self, token_ids_T: Tensor, positions_T: Tensor, context: StepContext) -> Tensor:
        """Return hidden_TD after the final norm, the same on every rank; writes the step's KV."""
        raise NotImplementedError

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return float32 logits_SV of this rank's vocabulary rows. No collective."""
        raise NotImplementedError
