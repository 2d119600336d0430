"""Weights of any checkpoint in eight bits, symmetric, a float16 scale per group of 32 inputs (GGUF's Q8_0).

R outputs, I inputs, G = I / 32 groups.
"""

import torch
from torch import Tensor

from parallel.formats.kinds import GROUP_SIZE, QuantFormat, is_group_aligned
from parallel.formats.quantised import QuantisedMatrix

_MAX_CODE = 127
_CHUNK_WEIGHTS = 2**18
"""Quantising makes float32 temporaries; of this many weights they stay in the CPU's cache, and take no memory."""


def quantise_int8(weight_RI: Tensor) -> QuantisedMatrix | None:
    """Return the nearest matrix in INT8, on the CPU; None where the inputs are not whole groups.

    A row depends on itself alone, so slices by rows and by whole groups of the result are the results of the slices.
    A group that holds NaN or infinity gets no finite weight.
    """
    num_outputs, num_inputs = weight_RI.shape
    if not is_group_aligned(0, num_inputs):
        return None
    codes_RI = torch.empty(num_outputs, num_inputs, dtype=torch.int8)
    scales_RG = torch.empty(num_outputs, num_inputs // GROUP_SIZE, dtype=torch.float16)
    num_rows = max(1, _CHUNK_WEIGHTS // max(1, num_inputs))
    chunks = zip(*(matrix.split(num_rows) for matrix in (weight_RI, codes_RI, scales_RG)), strict=True)
    for weights, codes, scales in chunks:
        _quantise(weights, codes, scales)
    return QuantisedMatrix(QuantFormat.INT8, codes_RI, scales_RG)


def _quantise(weight_RI: Tensor, codes_RI: Tensor, scales_RG: Tensor) -> None:
    """Fill codes and scales."""
    groups_RGI = weight_RI.float().unflatten(1, (-1, GROUP_SIZE))
    scales_RG.copy_(groups_RGI.abs().amax(dim=-1) / _MAX_CODE)
    # Codes are counted in the scale as it is kept. A group of zeros has scale 0.
    steps_RG = scales_RG.float()
    inverse_RG = torch.where(steps_RG == 0, 0, 1 / steps_RG)
    codes_RGI = (groups_RGI * inverse_RG.unsqueeze(-1)).round_().clamp_(-_MAX_CODE, _MAX_CODE)
    codes_RI.unflatten(1, (-1, GROUP_SIZE)).copy_(codes_RGI)
