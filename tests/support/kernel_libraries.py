"""The CPU kernels of this machine, at each level it runs; loaded, and where needed compiled, once a test run."""

from functools import cache

import pytest

from parallel.cpu.library import KernelLibrary, KernelsUnavailable, runnable_levels
from parallel.cpu.threads import ThreadPool

LEVELS = [level.name for level in runnable_levels()]


@cache
def kernel_library(level: str | None = None) -> KernelLibrary:
    """Return the library of a level, or of the best; skips the test where there is no compiler."""
    try:
        return KernelLibrary.load(level)
    except KernelsUnavailable as error:
        pytest.skip(str(error))


@cache
def thread_pool(num_threads: int = 1, level: str | None = None) -> ThreadPool:
    """Return threads of the level's library."""
    return ThreadPool(kernel_library(level), num_threads)
