"""Weights kept in fewer bits: codes, and the scales that groups of inputs share.

R outputs, I inputs, G groups of an output: I / 32 in INT8 and INT4, 1 in FP8.
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
    """One weight, a byte per code; kernels pack it closer. Stacks, and slices by rows and whole groups, are exact."""

    format: QuantFormat
    codes_RI: Tensor
    """int8 for INT8, uint8 for INT4, float8_e4m3fn for FP8."""
    scales_RG: Tensor
    """float16; float32 for FP8."""
    minimums_RG: Tensor | None = None
    """float16, INT4 only."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        num_outputs, num_inputs = self.codes_RI.shape
        return num_outputs, num_inputs

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """Return the parts as one matrix, outputs after outputs; all of one format and width. One is not copied."""
        if len(parts) == 1:
            return parts[0]
        minimums = [part.minimums_RG for part in parts if part.minimums_RG is not None]
        return cls(
            parts[0].format,
            torch.cat([part.codes_RI for part in parts]),
            torch.cat([part.scales_RG for part in parts]),
            torch.cat(minimums) if minimums else None,
        )

    def to(self, device: torch.device) -> Self:
        """Return the matrix on `device`; itself if it is there."""
        if self.codes_RI.device == device:
            return self
        minimums_RG = None if self.minimums_RG is None else self.minimums_RG.to(device)
        return type(self)(self.format, self.codes_RI.to(device), self.scales_RG.to(device), minimums_RG)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return w_RI; the reference that kernels are tested against."""
        groups_RGI = self.codes_RI.float().unflatten(1, (self.scales_RG.shape[1], -1))
        weights_RGI = groups_RGI * self.scales_RG.float().unsqueeze(-1)
        if self.minimums_RG is not None:
            weights_RGI += self.minimums_RG.float().unsqueeze(-1)
        return weights_RGI.flatten(1).to(dtype)
