"""The CUDA tier of a rank: its operations, and how a step runs through them. For where `cuda_obstacle` is empty."""

import torch

from parallel.cuda.device import Gpu
from parallel.cuda.linear import scaled_matmul
from parallel.cuda.ops import CudaOps
from parallel.cuda.row_kernels import CudaRowKernels
from parallel.cuda.runner import GraphRunner, Samplers
from parallel.cuda.sampler import DeviceSampler
from parallel.cuda.support import fp8_obstacle
from parallel.groups.base import TPGroup
from parallel.kv_cache import KVCache
from parallel.models.decoder import CausalLM
from parallel.ops.choice import OpChoice
from parallel.rank.tier import RunChoice, StepLimits
from parallel.sampling.sampler import Sampler


class CudaTier:
    """Kernels of one GPU."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._device = device
        self._fp8_obstacle = fp8_obstacle(device)
        num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self.ops = CudaOps(dtype, num_multiprocessors, None if self._fp8_obstacle else scaled_matmul())

    def runner(self, model: CausalLM, kv: KVCache, group: TPGroup, limits: StepLimits) -> RunChoice:
        """Return a runner that replays decode steps as graphs. A collective that takes a while."""
        samplers = Samplers(
            DeviceSampler(group, model.vocab, self._device),
            Sampler(group, model.vocab, self._device, CudaRowKernels()),
        )
        runner = GraphRunner(model, kv, samplers, Gpu(self._device), limits)
        kv_dtype = str(kv.layers[0].key.dtype).removeprefix("torch.")
        return RunChoice(
            runner,
            [
                OpChoice("linear", "cuda", f"{model.lm_head.matmul.name} head", self._fp8_obstacle),
                OpChoice("attention", "cuda", f"triton, split contexts and tiles, {kv_dtype} paged KV"),
                OpChoice("norm, rope, activation", "cuda", "triton, add and norm in one, rotate and write in one"),
                OpChoice("sampling", "cuda", "triton, one pass over the logits, bisection for filters"),
                OpChoice("step", "cuda", f"CUDA graphs of up to {limits.max_rows} rows; other steps op by op"),
            ],
        )
