"""Weights of any checkpoint in eight bits. Nothing is calibrated: a code is the nearest one.

R outputs, I inputs, G = I / 32 groups.
"""

import torch
from torch import Tensor

from parallel.formats.kinds import GROUP_SIZE, QuantFormat, is_group_aligned
from parallel.formats.quantised import QuantisedMatrix

_MAX_CODE = 127
_CHUNK_WEIGHTS = 2**18
"""Quantising makes float32 temporaries; of this many weights they stay in the CPU's cache, and take no memory. One
thread does 1.0 G weights/s, with 2^15 and 2^16 at a time 0.3 and 0.7 (AMD Zen 5)."""


def quantise_int8(weight_RI: Tensor) -> QuantisedMatrix | None:
    """Return the nearest matrix in INT8, where the weight is; None if the inputs are no whole groups.

    Slices by rows and by whole groups of the result are the results of the slices. A group that holds NaN or infinity
    gets no finite weight.
    """
    num_outputs, num_inputs = weight_RI.shape
    if not is_group_aligned(0, num_inputs):
        return None
    codes_RI = torch.empty(num_outputs, num_inputs, dtype=torch.int8, device=weight_RI.device)
    scales_RG = torch.empty(num_outputs, num_inputs // GROUP_SIZE, dtype=torch.float16, device=weight_RI.device)
    num_rows = max(1, _CHUNK_WEIGHTS // max(1, num_inputs))
    chunks = zip(*(matrix.split(num_rows) for matrix in (weight_RI, codes_RI, scales_RG)), strict=True)
    for weights, codes, scales in chunks:
        _quantise_int8(weights, codes, scales)
    return QuantisedMatrix(QuantFormat.INT8, codes_RI, scales_RG)


def _quantise_int8(weight_RI: Tensor, codes_RI: Tensor, scales_RG: Tensor) -> None:
    """Fill codes and scales."""
    groups_RGI = weight_RI.float().unflatten(1, (-1, GROUP_SIZE))
    scales_RG.copy_(groups_RGI.abs().amax(dim=-1) / _MAX_CODE)
    # Codes are counted in the scale as it is kept. A group of zeros has scale 0.
    steps_RG = scales_RG.float()
    inverse_RG = torch.where(steps_RG == 0, 0, 1 / steps_RG)
    codes_RGI = (groups_RGI * inverse_RG.unsqueeze(-1)).round_().clamp_(-_MAX_CODE, _MAX_CODE)
    codes_RI.unflatten(1, (-1, GROUP_SIZE)).copy_(codes_RGI)


def quantise_fp8(weight_RI: Tensor) -> QuantisedMatrix:
    """Return the nearest matrix in FP8, where the weight is.

    Slices by rows of the result are the results of the slices. An output that holds NaN or infinity gets no finite
    weight.
    """
    largest = torch.finfo(torch.float8_e4m3fn).max
    weights_RI = weight_RI.float()
    scales_R1 = weights_RI.abs().amax(dim=1, keepdim=True) / largest
    inverse_R1 = torch.where(scales_R1 == 0, 0, 1 / scales_R1)
    codes_RI = weights_RI.mul(inverse_R1).clamp_(-largest, largest).to(torch.float8_e4m3fn)
    return QuantisedMatrix(QuantFormat.FP8, codes_RI, scales_R1)
