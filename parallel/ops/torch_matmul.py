"""The product x_TI @ W_RI^T in the form that is fastest in plain torch.

T tokens, I input features, R output features.

On CPUs oneDNN reorders a bfloat16 weight on every call of `F.linear`. Reordered once after loading, the products of one
decode step of SmolLM2-135M take 0.55 of the time (15.9 to 8.9 ms with one thread, the LM head 3.8 to 1.8 ms), and the
results are the same.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

from parallel.ops.base import Matmul


class PlainMatmul:
    """Uses the weight as it was loaded."""

    name = "plain"

    def __init__(self, weight_RI: Tensor, bias_R: Tensor | None) -> None:
        self._weight_RI, self._bias_R = weight_RI, bias_R
        self.num_bytes = weight_RI.nbytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return y_TR."""
        return linear(x_TI, self._weight_RI, self._bias_R)

    def shares(self, weight: Tensor) -> bool:
        """Whether `weight` is kept here as it is."""
        return self._weight_RI.data_ptr() == weight.data_ptr()


class PackedMatmul:
    """Holds a copy of the weight in oneDNN's blocked order; the original is not kept."""

    name = "packed"

    def __init__(self, weight_RI: Tensor, bias_R: Tensor | None) -> None:
        self.num_bytes = weight_RI.nbytes
        self._bias_R = bias_R
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_RI.detach())
        self._linear = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return y_TR."""
        return self._linear(x_TI, self._weight, self._bias_R, "none", [], "")

    def shares(self, weight: Tensor) -> bool:
        """Whether `weight` is kept here as it is: never."""
        return False


def fastest_matmul(weight_RI: Tensor, bias_R: Tensor | None) -> Matmul:
    """Return the fastest form for this weight; a packed one is a copy, so drop the original."""
    is_packable = weight_RI.device.type == "cpu" and weight_RI.dtype == torch.bfloat16 and weight_RI.numel() > 0
    return (PackedMatmul if is_packable and has_packed_matmul() else PlainMatmul)(weight_RI, bias_R)


@cache
def has_packed_matmul() -> bool:
    """Whether this torch and this CPU multiply packed bfloat16 weights; tried once, on a small product."""
    generator = torch.Generator().manual_seed(0)
    weight_RI = torch.randn(24, 40, generator=generator).bfloat16()
    x_TI = torch.randn(3, 40, generator=generator).bfloat16()
    try:
        y_TR = PackedMatmul(weight_RI, None)(x_TI)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(y_TR.float(), linear(x_TI.float(), weight_RI.float()), rtol=0.02, atol=0.05)
