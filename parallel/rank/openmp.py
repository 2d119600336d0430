"""OpenMP settings of a rank. libgomp reads them when torch loads it, so this comes before, and imports no torch."""

import os

SPINS = 1000
"""How often a thread that waits for the others looks before it sleeps. libgomp's own 300,000 burn a core for
milliseconds at each of the hundreds of barriers in a step as soon as anything else runs on one of the cores."""


def prepare_openmp(num_threads: int) -> None:
    """Set this process's environment; call before torch is imported. A spin count from outside is respected."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
