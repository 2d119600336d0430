"""The device that is measured, and its clock."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch

from parallel.cuda.device import Gpu, GraphDevice
from parallel.cuda.linear import ScaledMatmul, scaled_matmul
from parallel.cuda.ops import CudaOps
from parallel.cuda.support import fp8_obstacle


@dataclass(frozen=True)
class Rig:
    """One device and the kernels for it. Tests make one of the host."""

    on: GraphDevice
    num_multiprocessors: int
    dtype: torch.dtype = torch.bfloat16
    fp8: ScaledMatmul | None = None

    @classmethod
    def of_gpu(cls, device: torch.device) -> Self:
        """Return the rig of a CUDA device."""
        num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        return cls(Gpu(device), num_multiprocessors, fp8=None if fp8_obstacle(device) else scaled_matmul())

    @property
    def device(self) -> torch.device:
        """Where tensors are."""
        return self.on.device

    def ops(self) -> CudaOps:
        """Return the CUDA tier's operations."""
        return CudaOps(self.dtype, self.num_multiprocessors, self.fp8)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Give memory that nobody holds back to the device, so that the next model finds it."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def allocated_bytes(self) -> int:
        """Return what of the device's memory is in use, by whomever."""
        if self.device.type != "cuda":
            return 0
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    def seconds_of(self, work: Callable[[], object], repeats: int) -> float:
        """Return the median time of `work` on the device, launched back to back; it runs twice before."""
        for _ in range(2):
            work()
        self.synchronize()
        if self.device.type != "cuda":
            return statistics.median(_host_seconds(work) for _ in range(repeats))
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            work()
            event.record()
        self.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)) / 1e3


def _host_seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s
