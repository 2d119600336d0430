"""Whether the CUDA tier runs on this machine, and if not, why. Needs neither a GPU nor Triton."""

import importlib.util

import torch

_LEAST_CAPABILITY = (8, 0)
"""Compute capability from which on tensor cores multiply bfloat16 (Ampere)."""
_FP8_CAPABILITY = (8, 9)
"""Compute capability from which on tensor cores multiply fp8 (Ada)."""
_MAX_HEAD_DIM = 256


def cuda_obstacle(device: torch.device) -> str:
    """Return why the tier's kernels cannot run on this device; empty if they can."""
    if device.type != "cuda":
        return f"the CUDA kernels need an NVIDIA GPU, not {device.type}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device; look at nvidia-smi, and whether this torch was built for CUDA"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        return f"the CUDA kernels need compute capability 8.0 (Ampere), not {_dotted(capability)}"
    if not has_triton():
        return "triton is not installed; torch's CUDA wheels bring it along, or: pip install triton"
    return ""


def model_obstacle(head_dim: int) -> str:
    """Return why the tier's kernels cannot run a model with such heads; empty if they can."""
    if head_dim % 2 or head_dim > _MAX_HEAD_DIM:
        return f"the CUDA kernels need head_dim to be even and at most {_MAX_HEAD_DIM}, not {head_dim}"
    return ""


def fp8_obstacle(device: torch.device) -> str:
    """Return why this CUDA device cannot multiply fp8; empty if it can."""
    capability = torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        return f"fp8 tensor cores need compute capability 8.9 (Ada), not {_dotted(capability)}"
    return ""


def has_triton() -> bool:
    """Return whether kernels can be compiled here."""
    return importlib.util.find_spec("triton") is not None


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
