"""The CPU tier of a rank: the C library, its threads, and a whole step in one call where the group allows it."""

import torch

from parallel.cpu.library import KernelLibrary
from parallel.cpu.ops import CpuOps
from parallel.cpu.program import CpuProgram
from parallel.cpu.sampling import CpuRowKernels, GreedyInOneCall
from parallel.cpu.threads import ThreadPool
from parallel.groups.base import TPGroup
from parallel.groups.shared_memory import SharedMemoryGroup
from parallel.kv_cache import KVCache
from parallel.models.decoder import CausalLM
from parallel.ops.choice import OpChoice
from parallel.rank.forward import Forward, OpByOp
from parallel.rank.stepping import DirectRunner, StepSampler
from parallel.rank.tier import RunChoice, StepLimits
from parallel.sampling.sampler import Sampler

CPU = torch.device("cpu")


class CpuTier:
    """Kernels of one instruction-set level on `num_threads` threads."""

    def __init__(self, library: KernelLibrary, num_threads: int) -> None:
        self._library = library
        self._threads = ThreadPool(library, num_threads)
        self.ops = CpuOps(library, self._threads)

    def runner(self, model: CausalLM, kv: KVCache, group: TPGroup, limits: StepLimits) -> RunChoice:
        """Return a runner whose step is one C call, or calls of single operations if the group is out of C's reach."""
        _leave_cores_to_kernels()
        forward, reason = self._forward(model, kv, group)
        kernels = CpuRowKernels(self._library, self._threads)
        sampler: StepSampler = Sampler(group, model.vocab, CPU, kernels)
        if group.world_size == 1:
            sampler = GreedyInOneCall(kernels, sampler)
        level = self._library.level
        details = {
            "linear": f"{level}, {model.lm_head.matmul.name} head",
            "attention": f"{level}, {str(kv.layers[0].key.dtype).removeprefix('torch.')} paged KV",
            "norm, rope, activation": level,
            "sampling": level,
        }
        choices = [OpChoice(op, "cpu", detail) for op, detail in details.items()]
        step = OpChoice("step", "cpu", f"{forward.name}, up to {self._threads.num_threads} threads", reason)
        return RunChoice(DirectRunner(forward, sampler), [*choices, step])

    def _forward(self, model: CausalLM, kv: KVCache, group: TPGroup) -> tuple[Forward, str]:
        if group.world_size == 1:
            return CpuProgram(model, kv, self._library, self._threads), ""
        if isinstance(group, SharedMemoryGroup):
            return CpuProgram(model, kv, self._library, self._threads, group), ""
        return OpByOp(model, kv, CPU), "the ranks do not share memory, so every sum goes through torch.distributed"


def _leave_cores_to_kernels() -> None:
    """Have torch compute with one thread in this process from now on.

    What is left to it in a step is small, but OpenMP's other threads spin for a while after each of its operations, on
    cores that the kernels' own threads are waiting for, and decode steps took half as long again.
    """
    torch.set_num_threads(1)
