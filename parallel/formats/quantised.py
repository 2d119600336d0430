"""Weights kept in fewer bits: groups of 32 inputs that share a scale, as GGUF's Q8_0, Q4_0 and Q4_1 have them.

R outputs, I inputs, G = I / 32 groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from parallel.formats.kinds import GROUP_SIZE, QuantFormat

__all__ = ["GROUP_SIZE", "QuantFormat", "QuantisedMatrix"]


@dataclass(frozen=True)
class QuantisedMatrix:
    """One weight, a byte per code; kernels pack it closer. Group-aligned slices and stacks are exact."""

    format: QuantFormat
    codes_RI: Tensor
    """int8 for INT8, uint8 for INT4."""
    scales_RG: Tensor
    """float16."""
    minimums_RG: Tensor | None = None
    """float16, INT4 only."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        num_outputs, num_inputs = self.codes_RI.shape
        return num_outputs, num_inputs

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """Return the parts as one matrix, outputs after outputs; all of one format and width."""
        minimums = [part.minimums_RG for part in parts if part.minimums_RG is not None]
        return cls(
            parts[0].format,
            torch.cat([part.codes_RI for part in parts]),
            torch.cat([part.scales_RG for part in parts]),
            torch.cat(minimums) if minimums else None,
        )

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return w_RI; the reference that kernels are tested against."""
        groups_RGI = self.codes_RI.unflatten(1, (-1, GROUP_SIZE)).float()
        weights_RGI = groups_RGI * self.scales_RG.float().unsqueeze(-1)
        if self.minimums_RG is not None:
            weights_RGI += self.minimums_RG.float().unsqueeze(-1)
        return weights_RGI.flatten(1).to(dtype)
