"""The operations a model is made of. A tier is a set of them for one kind of machine.

T tokens in step, D model dim, F feed-forward columns on this rank, R outputs of a matrix, I inputs of a matrix, S rows
that sample, V vocabulary rows on this rank, H query heads on this rank, K kv heads on this rank, E head dim.

Tier 0 (`torch_ops`) is plain torch, runs anywhere, and is what the other tiers are tested against. The CPU tier
(`parallel/cpu`) is a C library, the CUDA tier (`parallel/cuda`) is Triton kernels and torch's own. Which tier an
operation got, and why not a faster one, is an `OpChoice` (`choice`): shown, never hidden.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from parallel.attention.base import AttentionBatch, KVLayout, LayerKV
from parallel.formats.quantised import QuantisedMatrix


class Matmul(Protocol):
    """A weight and the way to multiply by it."""

    name: str
    """Format and kernel, for `OpChoice`."""
    num_bytes: int
    """Memory the weight takes."""

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return y_TR = x_TI @ W_RI^T + bias_R, in the tier's activation dtype."""
        ...

    def shares(self, weight: Tensor) -> bool:
        """Whether `weight` itself is kept, not a copy in another form."""
        ...


class EmbeddingTable(Protocol):
    """The rows of a weight, looked up by token id. May share its memory with the head's Matmul."""

    num_bytes: int
    """Memory it takes beyond what it shares."""

    def __call__(self, rows_T: Tensor) -> Tensor:
        """Return x_TD; a row outside the table gives zeros, because another rank holds it."""
        ...


class HeadNorms(NamedTuple):
    """RMS norms over each head's features, as Qwen3 has them."""

    q_E: Tensor
    k_E: Tensor
    eps: float


class HeadShape(NamedTuple):
    """How a row of the qkv product is divided: query heads, then key heads, then value heads."""

    num_query_heads: int
    num_kv_heads: int
    head_dim: int


class Best(NamedTuple):
    """The most likely token of each row, in this rank's part of the vocabulary."""

    logit_S: Tensor
    index_S: Tensor
    """int64, the lowest of equals; a row of this rank's vocabulary."""
    is_sound_S: Tensor
    """False for a row with NaN, +inf, or nothing but -inf."""


class Ops(Protocol):
    """One tier. Mutates only what it says; tensors are contiguous and on the tier's device."""

    name: str
    activation_dtype: torch.dtype
    """Of everything between operations: the model's dtype, or float32 where weights are narrower than activations."""

    def matmul(self, weight_RI: Tensor | QuantisedMatrix, bias_R: Tensor | None) -> Matmul:
        """Return the product in the form that is fastest here; the weight may be copied, so drop the original."""
        ...

    def embedding(self, weight_VD: Tensor | QuantisedMatrix | None, head: Matmul | None) -> EmbeddingTable:
        """Return the lookup of a weight; where embedding and head are tied, `head` is the Matmul made of it."""
        ...

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight, in memory of its own; the mean is taken in float32."""
        ...

    def add_rms_norm(self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Add `x_TD` to `residual_TD` (mutates), then return the residual's rms_norm."""
        ...

    def silu_mul(self, gate_up_TF: Tensor) -> Tensor:
        """Return silu(gate) * up, where `gate_up_TF` holds the one beside the other."""
        ...

    def kv_layout(self, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> KVLayout:
        """Return how this tier keeps a layer's keys and values; int8 has scales, other dtypes have none."""
        ...

    def rotation(self, positions_T: Tensor, frequencies: Tensor) -> Tensor:
        """Return rotation_TE, made once a step for all layers: cosines of E/2 angles, then their sines.

        The angle of feature i is position * frequencies[i] in float32 (E/2 frequencies); the result has the tier's
        activation dtype.
        """
        ...

    def rotate_and_write(
        self,
        qkv_TR: Tensor,
        shape: HeadShape,
        norms: HeadNorms | None,
        rotation_TE: Tensor,
        kv: LayerKV,
        batch: AttentionBatch,
    ) -> Tensor:
        """Norm (where asked) and rotate queries and keys, write keys and values at `batch.slots_T`, return q_THE.

        May overwrite `qkv_TR`, and the result may be a view of it. Feature i of a head turns together with feature
        i + E/2. Keys and values that are not finite are written as zeros: a block is padding, later content, of other
        requests.
        """
        ...

    def attend(self, q_THE: Tensor, kv: LayerKV, batch: AttentionBatch, scale: float) -> Tensor:
        """Return causal attention out_THE of rotated queries over the paged cache (see AttentionBatch)."""
        ...

    def best(self, logits_SV: Tensor) -> Best:
        """Return the largest logit of each row; `logits_SV` is float32."""
        ...
