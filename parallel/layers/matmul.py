"""The product x_TI @ W_OI^T in the form that is fastest where the weight lives.

T tokens, I input features, O output features.

On CPUs oneDNN reorders a bfloat16 weight on every call of `F.linear`. Reordered once after loading, the products of one
decode step of SmolLM2-135M take 0.55 of the time (15.9 to 8.9 ms with one thread, the LM head 3.8 to 1.8 ms), and the
results are the same.
"""

from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear


class Matmul(Protocol):
    """A weight and the way to multiply by it."""

    name: str
    """For logs."""
    extra_bytes: int
    """Memory it takes beside the parameter it was made from."""

    def __call__(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return y_TO = x_TI @ W_OI^T + bias_O."""
        ...


class PlainMatmul:
    """Uses the weight as it was loaded."""

    name = "plain"
    extra_bytes = 0

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight_OI = weight_OI

    def __call__(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return y_TO."""
        return linear(x_TI, self._weight_OI, bias_O)


class PackedMatmul:
    """Holds a copy of the weight in oneDNN's blocked order; the original is not kept."""

    name = "packed"

    def __init__(self, weight_OI: Tensor) -> None:
        self.extra_bytes = weight_OI.nbytes
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach())
        self._linear = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return y_TO."""
        return self._linear(x_TI, self._weight, bias_O, "none", [], "")


def fastest_matmul(weight_OI: Tensor) -> Matmul:
    """Return the fastest form for this weight; a packed one is a copy, so drop the original."""
    is_packable = weight_OI.device.type == "cpu" and weight_OI.dtype == torch.bfloat16 and weight_OI.numel() > 0
    return PackedMatmul(weight_OI) if is_packable and has_packed_matmul() else PlainMatmul(weight_OI)


@cache
def has_packed_matmul() -> bool:
    """Whether this torch and this CPU multiply packed bfloat16 weights; tried once, on a small product."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(24, 40, generator=generator).bfloat16()
    x_TI = torch.randn(3, 40, generator=generator).bfloat16()
    try:
        y_TO = PackedMatmul(weight_OI)(x_TI, None)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(y_TO.float(), linear(x_TI.float(), weight_OI.float()), rtol=0.02, atol=0.05)
