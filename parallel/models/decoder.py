"""The decoder that Llama, Mistral, Qwen2 and Qwen3 share; ModelSpec says how they differ.

T tokens in step, S sampled positions, D model dim, V vocabulary rows on this rank.

Modules are named as in Hugging Face checkpoints, so a parameter's path is its name there.
"""

import torch
from torch import Tensor, nn

from parallel.attention.base import StepContext
from parallel.groups.base import TPGroup
from parallel.layers.attention import Attention
from parallel.layers.linear import Linear
from parallel.layers.mlp import MLP
from parallel.layers.norm import RMSNorm
from parallel.layers.rotary import RotaryEmbedding
from parallel.layers.shard import Storage
from parallel.layers.vocab import VocabParallelEmbedding, VocabParallelHead
from parallel.models.spec import ModelSpec
from parallel.sharding import RankShard


class DecoderLayer(nn.Module):
    """Attention, then the feed-forward network; each reads the normed residual stream and is added to it.

    An output is added by the norm that comes after it, in one operation.
    """

    def __init__(self, index: int, spec: ModelSpec, shard: RankShard, group: TPGroup, storage: Storage) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, storage)
        self.self_attn = Attention(index, spec, shard, group, storage)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, storage)
        self.mlp = MLP(spec, shard.ffn, group, storage)

    def forward(self, x_TD: Tensor, residual_TD: Tensor, rotation_TE: Tensor, context: StepContext) -> Tensor:
        """Return what is to be added to the residual stream; adds `x_TD`, what came before, to it (mutates)."""
        attention_TD = self.self_attn(self.input_layernorm(x_TD, residual_TD), rotation_TE, context)
        return self.mlp(self.post_attention_layernorm(attention_TD, residual_TD))


class Decoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, spec: ModelSpec, shard: RankShard, group: TPGroup, storage: Storage) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(shard.vocab, spec.hidden_size, group, storage)
        self.rotary = RotaryEmbedding(spec.rope, spec.head_dim, storage)
        self.layers = nn.ModuleList(
            DecoderLayer(index, spec, shard, group, storage) for index in range(spec.num_layers)
        )
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, storage)

    def forward(self, token_ids_T: Tensor, positions_T: Tensor, context: StepContext) -> Tensor:
        """Return hidden_TD."""
        x_TD = self.embed_tokens(token_ids_T)
        residual_TD = torch.zeros_like(x_TD)
        rotation_TE = self.rotary(positions_T)
        for layer in self.layers:
            x_TD = layer(x_TD, residual_TD, rotation_TE, context)
        return self.norm(x_TD, residual_TD)


class CausalLM(nn.Module):
    """One rank's part of a decoder-only language model."""

    def __init__(self, spec: ModelSpec, shard: RankShard, group: TPGroup, storage: Storage) -> None:
        super().__init__()
        self.spec = spec
        self.vocab = shard.vocab
        self.model = Decoder(spec, shard, group, storage)
        embedding = self.model.embed_tokens.weight
        assert embedding is not None
        head = embedding if spec.tie_word_embeddings else storage.matrix(len(shard.vocab), spec.hidden_size)
        self.lm_head = VocabParallelHead(head, shard.vocab, storage)

    @property
    def num_layers(self) -> int:
        """Decoder layers, each with its own KV."""
        return self.spec.num_layers

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.spec.eos_token_ids

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take on this rank, in whatever form they are kept."""
        linears = [layer.matmul for layer in self.modules() if isinstance(layer, Linear)]
        matrices = [*linears, self.model.embed_tokens.table]
        return sum(matrix.num_bytes for matrix in matrices) + sum(vector.nbytes for vector in self.parameters())

    def forward(self, token_ids_T: Tensor, positions_T: Tensor, context: StepContext) -> Tensor:
        """Return hidden_TD after the final norm, the same on every rank; writes the step's KV."""
        return self.model(token_ids_T, positions_T, context)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return float32 logits_SV of this rank's vocabulary rows. No collective."""
        return self.lm_head(hidden_SD)
