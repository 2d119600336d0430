"""Rotary position embedding (arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints.

T tokens in step, H heads, E head dim. Feature i of a head is rotated together with feature i + E/2.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.models.spec import RopeSpec


class Rotation(NamedTuple):
    """The rotation of every token of a step; made once, used by all layers."""

    cos_T1E: Tensor
    sin_T1E: Tensor
    """Negative in the first half of E."""

    def apply(self, x_THE: Tensor) -> Tensor:
        """Return the rotated heads in memory of their own."""
        swapped_THE = x_THE.roll(x_THE.shape[-1] // 2, dims=-1)
        return torch.addcmul(x_THE * self.cos_T1E, swapped_THE, self.sin_T1E)


class RotaryEmbedding(nn.Module):
    """Turns positions into a Rotation. Angles are float32; the model's precision is used to rotate, as others do."""

    def __init__(self, rope: RopeSpec, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype = dtype
        self.frequencies = torch.from_numpy(rope.inverse_frequencies(head_dim)).to(device)

    def forward(self, positions_T: Tensor) -> Rotation:
        """Return cosines and sines of the angle position * frequency."""
        angles = positions_T.to(torch.float32).unsqueeze(1) * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        return Rotation(
            cos_T1E=torch.cat((cos, cos), dim=-1).to(self.dtype).unsqueeze(1),
            sin_T1E=torch.cat((-sin, sin), dim=-1).to(self.dtype).unsqueeze(1),
        )
