"""How fast this machine reads memory now, by one core and by all: the limit of decoding at small batches.

python -m benchmarks.peers.bandwidth
"""

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIZE_BYTES = 3 * 2**29
"""1.5 GiB: more than any cache holds."""
NUM_PASSES = 5
_SOURCE = Path(__file__).with_name("read_memory.c")
_WORDS_AT_ONCE = 32


class Bandwidth(NamedTuple):
    """Bytes per second, the best of a few passes."""

    one_core: float
    all_cores: float

    def in_gb_per_s(self) -> dict[str, float]:
        """Return the figures as a results file has them."""
        return {"one_core": round(self.one_core / 1e9, 1), "all_cores": round(self.all_cores / 1e9, 1)}


class MemoryReader:
    """The compiled reader. Compiling takes a fraction of a second; memory is held only while it measures."""

    def __init__(self, folder: Path) -> None:
        """Compile into `folder`. Raises SystemExit where there is no C compiler."""
        library = folder / "read_memory.so"
        command = ["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"the read bandwidth needs a C compiler: {error}") from None
        self._read = ctypes.CDLL(str(library)).read_words
        self._read.restype = ctypes.c_uint64
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def measure(self, size_bytes: int = SIZE_BYTES, num_passes: int = NUM_PASSES) -> Bandwidth:
        """Return what the machine gives now; blocks for about a second."""
        words = np.ones(size_bytes // 8, np.uint64)
        num_cores = len(os.sched_getaffinity(0))
        return Bandwidth(self._best(words, 1, num_passes), self._best(words, num_cores, num_passes))

    def _best(self, words: np.ndarray, num_threads: int, num_passes: int) -> float:
        share = len(words) // num_threads // _WORDS_AT_ONCE * _WORDS_AT_ONCE
        shortest_s = float("inf")
        with ThreadPoolExecutor(num_threads) as threads:
            for _ in range(num_passes):
                start = time.perf_counter()
                # ctypes lets go of the GIL for the call.
                reads = [threads.submit(self._read, words[i * share :].ctypes.data, share) for i in range(num_threads)]
                for read in reads:
                    read.result()
                shortest_s = min(shortest_s, time.perf_counter() - start)
        return share * num_threads * 8 / shortest_s


def measure_once() -> Bandwidth:
    """Compile, measure and forget."""
    with tempfile.TemporaryDirectory(prefix="eagleray-bandwidth-") as folder:
        return MemoryReader(Path(folder)).measure()


if __name__ == "__main__":
    sys.stdout.write(f"{measure_once().in_gb_per_s()} GB/s\n")
