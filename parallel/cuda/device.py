"""What a graph runner asks of a device: graphs, events and memory that copies to it do not wait for.

A GPU gives all three. On a CPU a graph is its function called again, so that a runner can be tested without a GPU.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """A point in the device's work."""

    def is_reached(self) -> bool:
        """Whether all work before the mark is done."""
        ...

    def wait(self) -> None:
        """Return when it is; blocks."""
        ...


class GraphDevice(Protocol):
    """A device that can repeat work it has recorded."""

    device: torch.device

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return zeros on the host that the device copies from and to while the host goes on."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does again, on the same tensors, what `work` launches. Runs `work` a few times."""
        ...

    def mark(self) -> Mark:
        """Return a mark behind everything launched so far."""
        ...


class Gpu:
    """A CUDA device; graphs share one memory pool, because only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One stream for all recordings: cuBLAS keeps a workspace of tens of MiB for every stream it was called on.
        self._stream = torch.cuda.Stream(device)

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return page-locked zeros."""
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture `work`; it runs once before, so that kernels are compiled and libraries have their workspaces."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        # What other threads ask of the device meanwhile (NCCL's watchdog looks at events) does not end the capture.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def mark(self) -> Mark:
        """Return a recorded event."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return _EventMark(event)


class _EventMark:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def is_reached(self) -> bool:
        """Whether the event has happened."""
        return self._event.query()

    def wait(self) -> None:
        """Wait for the event."""
        self._event.synchronize()


class Repeater:
    """The host as its own device: work is done at once, and recorded work again."""

    device = torch.device("cpu")

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return zeros."""
        return torch.zeros(shape, dtype=dtype)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return `work`, which has run once."""
        work()
        return work

    def mark(self) -> Mark:
        """Return a mark that is reached."""
        return _Reached()


class _Reached:
    def is_reached(self) -> bool:
        """Return True."""
        return True

    def wait(self) -> None:
        """Return."""
