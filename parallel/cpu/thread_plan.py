"""How many threads a step of so many tokens gets: measured on the loaded weights, because machines differ.

A decode step of few tokens waits for memory, which one core may or may not be able to keep busy; more threads than that
only take cores from the gateways and other ranks of the machine. What a step computes does not depend on it.
"""

import math
import time
from collections.abc import Callable, Sequence
from ctypes import byref
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Self

import torch

from parallel.cpu import abi
from parallel.cpu.library import KernelLibrary
from parallel.cpu.threads import ThreadPool

_SIZES = (1, 2, 4, 8)
"""Tokens of the steps that are measured, until one wants all threads; larger ones want no fewer."""
_ROUNDS = 5
_MAX_BYTES = 256 << 20
"""Weights to walk through: more than caches hold, few enough to be done in a fraction of a second."""
_WORTHWHILE = 0.95
"""More threads must take less than this share of the time that fewer take."""
_LEAST_CPU_SHARE = 0.9
"""Threads that got less of their cores than this shared them with others, and their time says nothing."""


@dataclass(frozen=True)
class ThreadPlan:
    """Limits for small steps; larger ones get all threads."""

    small_steps: tuple[tuple[int, int], ...]
    """Most tokens, and threads for up to so many; ascending."""
    num_threads: int

    def threads_for(self, num_tokens: int) -> int:
        """Return how many threads should take part."""
        return next((threads for tokens, threads in self.small_steps if num_tokens <= tokens), self.num_threads)

    @classmethod
    def measured(cls, library: KernelLibrary, threads: ThreadPool, matrices: Sequence[abi.Matrix]) -> Self:
        """Time products with some of the matrices; takes a fraction of a second, leaves the pool unlimited.

        Where others keep the cores too busy to tell, steps of every size get all threads.
        """
        walk = _Walk(library, threads, _first_matrices(library, matrices))
        small_steps: list[tuple[int, int]] = []
        for num_tokens in _SIZES:
            num_threads = fewest_worthwhile(partial(walk.seconds, num_tokens), threads.num_threads)
            if num_threads == threads.num_threads:
                break
            small_steps.append((num_tokens, num_threads))
        threads.limit(threads.num_threads)
        return cls(tuple(small_steps), threads.num_threads)


class _Walk:
    """Products of zeros with one matrix after the other, as a step makes them."""

    def __init__(self, library: KernelLibrary, threads: ThreadPool, matrices: Sequence[abi.Matrix]) -> None:
        self._calls = library.calls
        self._threads = threads
        self._matrices = matrices
        self._x = torch.zeros(max(_SIZES) * max(matrix.num_inputs for matrix in matrices))
        self._y = torch.empty(max(_SIZES) * max(matrix.num_outputs for matrix in matrices))

    def seconds(self, num_tokens: int, num_threads: int) -> float:
        """Return how long it takes; infinity if the threads did not have their cores for themselves."""
        self._threads.limit(num_threads)
        x, y = self._x.data_ptr(), self._y.data_ptr()
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        for matrix in self._matrices:
            self._calls.eg_matmul(self._threads.pointer, byref(matrix), x, num_tokens, y)
        wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
        return wall_s if cpu_s >= _LEAST_CPU_SHARE * num_threads * wall_s else math.inf


def _first_matrices(library: KernelLibrary, matrices: Sequence[abi.Matrix]) -> list[abi.Matrix]:
    sizes = (library.calls.eg_packed_bytes(each.format, each.num_outputs, each.num_inputs) for each in matrices)
    return [matrix for matrix, total in zip(matrices, accumulate(sizes), strict=True) if total <= _MAX_BYTES] or [
        matrices[0]
    ]


def fewest_worthwhile(seconds: Callable[[int], float], num_threads: int) -> int:
    """Return the smallest number of threads up to `num_threads` that is as fast as more of them.

    `seconds` takes a number of threads, times some work once and returns infinity if that time says nothing; a number
    of threads that is never timed rightly makes the answer `num_threads`.
    """
    counts = _thread_counts(num_threads)
    # Turn by turn, so that a moment in which the machine is busy meets all alike.
    rounds = [[seconds(count) for count in counts] for _ in range(_ROUNDS)]
    best_s = [min(times) for times in zip(*rounds, strict=True)]
    if math.inf in best_s:
        return num_threads
    fewest = 0
    for more in range(1, len(counts)):
        if best_s[more] < _WORTHWHILE * best_s[fewest]:
            fewest = more
    return counts[fewest]


def _thread_counts(num_threads: int) -> list[int]:
    """Return 1, 2, 4 and so on, and `num_threads` itself."""
    powers = [2**power for power in range(num_threads.bit_length()) if 2**power < num_threads]
    return [*powers, num_threads]
