"""Rotary position embedding (arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints.

T tokens in step, E head dim. Feature i of a head is rotated together with feature i + E/2.
"""

import torch
from torch import Tensor, nn

from parallel.layers.shard import Storage
from parallel.models.spec import RopeSpec


class RotaryEmbedding(nn.Module):
    """Turns positions into the rotation of a step, which all layers use."""

    def __init__(self, rope: RopeSpec, head_dim: int, storage: Storage) -> None:
        super().__init__()
        self.frequencies = torch.from_numpy(rope.inverse_frequencies(head_dim)).to(storage.device)
        self._ops = storage.ops

    def forward(self, positions_T: Tensor) -> Tensor:
        """Return rotation_TE: cosines, then sines, of the angles position * frequency."""
        return self._ops.rotation(positions_T, self.frequencies)
