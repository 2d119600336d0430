"""Which tier computes on this rank, and how it runs a step."""

from typing import NamedTuple

import torch

from parallel.cpu.library import KernelLibrary, KernelsUnavailable
from parallel.cpu.limits import cpu_obstacle
from parallel.cpu.tier import CpuTier
from parallel.cuda.support import cuda_obstacle, fp8_obstacle, model_obstacle
from parallel.groups.base import TPGroup
from parallel.kv_cache import KVCache
from parallel.models.decoder import CausalLM
from parallel.ops.choice import OpChoice
from parallel.ops.torch_ops import TorchOps
from parallel.rank.forward import OpByOp
from parallel.rank.stepping import DirectRunner
from parallel.rank.tier import RunChoice, StepLimits, Tier
from parallel.sampling.sampler import Sampler


class Shape(NamedTuple):
    """What a tier's kernels must be able to do."""

    dtype: torch.dtype
    kv_dtype: torch.dtype
    head_dim: int
    block_size: int


class TorchTier:
    """Tier 0."""

    def __init__(self, dtype: torch.dtype, device: torch.device, reason: str) -> None:
        """`reason` says why there is no faster one."""
        self.ops = TorchOps(dtype)
        self._device = device
        self._reason = reason

    def runner(self, model: CausalLM, kv: KVCache, group: TPGroup, limits: StepLimits) -> RunChoice:
        """Return a runner that goes operation by operation."""
        runner = DirectRunner(OpByOp(model, kv, self._device), Sampler(group, model.vocab, self._device))
        details = {
            "linear": model.lm_head.matmul.name,
            "attention": "gathered blocks, scaled_dot_product_attention",
            "norm, rope, activation": "torch",
            "sampling": "torch",
            "step": "op by op",
        }
        return RunChoice(runner, [OpChoice(op, "torch", detail, self._reason) for op, detail in details.items()])


def fastest_tier(device: torch.device) -> str:
    """Return the name of the fastest tier of this machine, by which the leader divides memory before a model loads."""
    if device.type == "cpu":
        return "torch" if isinstance(_library(), str) else "cpu"
    return "torch" if cuda_obstacle(device) else "cuda"


def why_no_fp8(device: torch.device) -> str:
    """Return why products in fp8 cannot be had on this device; empty if they can."""
    if device.type != "cuda":
        return f"it runs on {device.type}"
    return cuda_obstacle(device) or fp8_obstacle(device)


def choose_tier(device: torch.device, shape: Shape) -> Tier:
    """Return the fastest tier that has kernels for this machine and model. Threads are as many as torch's."""
    if device.type != "cpu":
        return _gpu_tier(device, shape)
    library = _library()
    if isinstance(library, str):
        return TorchTier(shape.dtype, device, library)
    obstacle = cpu_obstacle(_name(shape.dtype), _name(shape.kv_dtype), shape.head_dim, shape.block_size)
    if obstacle:
        return TorchTier(shape.dtype, device, obstacle)
    return CpuTier(library, torch.get_num_threads())


def _gpu_tier(device: torch.device, shape: Shape) -> Tier:
    obstacle = cuda_obstacle(device) or model_obstacle(shape.head_dim)
    if obstacle:
        return TorchTier(shape.dtype, device, obstacle)
    # Only here: it holds Triton kernels, and Triton comes with torch's CUDA builds alone.
    from parallel.cuda.tier import CudaTier

    return CudaTier(shape.dtype, device)


def _library() -> KernelLibrary | str:
    """Return the CPU kernels, or why there are none."""
    try:
        return KernelLibrary.load()
    except KernelsUnavailable as error:
        return str(error)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
