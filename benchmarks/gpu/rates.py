"""What the card itself does, to judge everything else by."""

import torch

from benchmarks.gpu.bounds import Rates
from benchmarks.gpu.rig import Rig


def measure_rates(rig: Rig, copy_bytes: int = 2**31, matrix_size: int = 8192, repeats: int = 20) -> Rates:
    """Return the rate of a copy from device memory to itself, and of a square product in the rig's precision."""
    copy_s = _copy_seconds(rig, copy_bytes, repeats)
    rig.free()
    matmul_s = _matmul_seconds(rig, matrix_size, repeats)
    rig.free()
    return Rates(2 * copy_bytes / copy_s, 2 * matrix_size**3 / matmul_s)


def _copy_seconds(rig: Rig, num_bytes: int, repeats: int) -> float:
    source = torch.ones(num_bytes, dtype=torch.uint8, device=rig.device)
    target = torch.empty_like(source)
    return rig.seconds_of(lambda: target.copy_(source), repeats)


def _matmul_seconds(rig: Rig, size: int, repeats: int) -> float:
    a, b = (torch.randn(size, size, device=rig.device).to(rig.dtype) for _ in range(2))
    out = torch.empty_like(a)
    return rig.seconds_of(lambda: torch.mm(a, b, out=out), repeats)
