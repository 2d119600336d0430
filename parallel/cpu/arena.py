"""Memory for what every step reads: weights side by side on huge pages."""

import mmap

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
ALIGNMENT = 64
"""A cache line, and the widest vector that kernels load."""
CHUNK_BYTES = 64 << 20


class Arena:
    """Hands out buffers that live as long as they are referred to; none is given back to it.

    A walk over a model's weights through 4 KiB pages waits for the pages to be looked up: one core (AMD Zen 5) reads
    256 MiB at 31-34 GB/s from small pages, at 39-41 from huge ones. Matrices are often smaller than a huge page, so
    they share mappings instead of having one each.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._taken = 0

    def take(self, num_bytes: int) -> Tensor:
        """Return `num_bytes` zeros, uint8, aligned to 64 bytes. Raises OSError if there is no more memory."""
        if self._taken + num_bytes > len(self._chunk):
            self._chunk = huge_zeros(max(num_bytes, self._chunk_bytes))
            self._taken = 0
        buffer = self._chunk[self._taken : self._taken + num_bytes]
        self._taken += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return buffer


def huge_zeros(num_bytes: int) -> Tensor:
    """Return zeros, uint8, from the start of a huge page on; memory is taken when it is first written."""
    memory = mmap.mmap(-1, num_bytes + HUGE_PAGE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    first = -whole.data_ptr() % HUGE_PAGE
    return whole[first : first + num_bytes]
