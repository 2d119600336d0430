"""What it would bring to keep packed weights in a file: packing, beside reading and beside mapping what was packed.

    python -m benchmarks.formats.packing                    # prints the figures
    python -m benchmarks.formats.packing --save             # and writes a results file

Weights are random, in the shapes of a model of 0.6 G, and lie in memory: what reading the checkpoint costs is paid
either way. Seconds are CPU time of one thread, the least of several rounds, per 10^9 bytes of packed weights; packing
on all cores is wall time.
"""

import argparse
import ctypes
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from ctypes import byref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import shown, write_report
from parallel.cpu import abi
from parallel.cpu.arena import Arena, huge_zeros
from parallel.cpu.library import KernelLibrary
from parallel.cpu.matrix import CpuMatmul
from parallel.cpu.threads import ThreadPool
from parallel.formats.kinds import GROUP_SIZE, QuantFormat
from parallel.formats.quantise import quantise_int8
from parallel.formats.quantised import QuantisedMatrix

SHAPES = [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)]
"""Outputs and inputs of a layer's matrices."""
NUM_LAYERS = 8
EMBEDDING = (64000, 2048)
ROUNDS = 3
_READ_BYTES = 64 << 20

Weight = Tensor | QuantisedMatrix


class SameMemory(Arena):
    """Hands out the same buffer again and again, which has been written before."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self._buffer = torch.ones(num_bytes + 64, dtype=torch.uint8)
        self._first = -self._buffer.data_ptr() % 64

    def take(self, num_bytes: int) -> Tensor:
        """Return the buffer's start."""
        return self._buffer[self._first : self._first + num_bytes]


class Packer:
    """Packs weights on `num_threads` threads."""

    def __init__(self, num_threads: int) -> None:
        self.library = KernelLibrary.load()
        self.threads = ThreadPool(self.library, num_threads)

    def pack(self, weights: Sequence[Weight], arena: Arena) -> list[CpuMatmul]:
        """Return the packed matrices."""
        return [CpuMatmul(self.library, self.threads, arena, weight, None) for weight in weights]

    def walk(self, matrices: Sequence[abi.Matrix]) -> None:
        """Multiply one token by each matrix, as a decode step does."""
        x = torch.ones(max(matrix.num_inputs for matrix in matrices))
        y = torch.empty(max(matrix.num_outputs for matrix in matrices))
        for matrix in matrices:
            self.library.calls.eg_matmul(self.threads.pointer, byref(matrix), x.data_ptr(), 1, y.data_ptr())


def measure(packer: Packer, all_cores: Packer, weights: Sequence[Weight], folder: Path) -> dict[str, float]:
    """Return seconds per 10^9 bytes, and bytes read per second of a decode step."""
    packed = packer.pack(weights, Arena())
    num_bytes = sum(matmul.num_bytes for matmul in packed)
    largest = max(matmul.num_bytes for matmul in packed)
    again = SameMemory(largest)
    file = folder / "packed"
    _write(packed, file)
    matrices = [matmul.matrix for matmul in packed]
    giga = num_bytes / 1e9
    figures = {
        "packed_bytes": num_bytes,
        "pack_s_per_gb": _least_s(lambda: packer.pack(weights, Arena())) / giga,
        "pack_on_all_cores_s_per_gb": _least_s(lambda: all_cores.pack(weights, Arena()), time.perf_counter) / giga,
        "pack_into_touched_memory_s_per_gb": _least_s(lambda: packer.pack(weights, again)) / giga,
        "touch_memory_s_per_gb": _least_s(lambda: huge_zeros(num_bytes).fill_(1)) / giga,
        "read_packed_file_s_per_gb": _least_s(lambda: _read(file, num_bytes)) / giga,
        "step_gb_per_s": giga / _least_s(lambda: packer.walk(matrices)),
    }
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        moved = _moved(matrices, packed, ctypes.addressof(ctypes.c_char.from_buffer(mapped)))
        figures["first_step_on_mapped_file_gb_per_s"] = giga / _least_s(lambda: packer.walk(moved), rounds=1)
        figures["step_on_mapped_file_gb_per_s"] = giga / _least_s(lambda: packer.walk(moved))
    return figures


def _write(packed: Sequence[CpuMatmul], file: Path) -> None:
    with file.open("wb") as handle:
        for matmul in packed:
            handle.write((ctypes.c_char * matmul.num_bytes).from_address(matmul.matrix.packed))


def _read(file: Path, num_bytes: int) -> None:
    """Read the file into fresh memory on huge pages."""
    view = huge_zeros(num_bytes).numpy().data
    descriptor = os.open(file, os.O_RDONLY)
    try:
        done = 0
        while done < num_bytes:
            done += os.preadv(descriptor, [view[done : done + _READ_BYTES]], done)
    finally:
        os.close(descriptor)


def _moved(matrices: Sequence[abi.Matrix], packed: Sequence[CpuMatmul], address: int) -> list[abi.Matrix]:
    """Return the same matrices, lying one after the other from `address` on."""
    moved: list[abi.Matrix] = []
    for matrix, matmul in zip(matrices, packed, strict=True):
        moved.append(
            abi.Matrix(
                format=matrix.format, num_outputs=matrix.num_outputs, num_inputs=matrix.num_inputs, packed=address
            )
        )
        address += matmul.num_bytes
    return moved


def _least_s(work: Callable[[], object], clock: Callable[[], float] = time.thread_time, rounds: int = ROUNDS) -> float:
    times: list[float] = []
    for _ in range(rounds):
        started = clock()
        work()
        times.append(clock() - started)
    return min(times)


def _random_weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [EMBEDDING, *(SHAPES * NUM_LAYERS)]
    return [torch.randn(shape, generator=generator).mul_(0.02).bfloat16() for shape in shapes]


def _as_int4(weight: Tensor) -> QuantisedMatrix:
    """Return a matrix of random codes: packing does not look at them."""
    num_outputs, num_inputs = weight.shape
    codes = torch.randint(0, 16, (num_outputs, num_inputs), dtype=torch.uint8)
    scales = torch.full((num_outputs, num_inputs // GROUP_SIZE), 0.01, dtype=torch.float16)
    return QuantisedMatrix(QuantFormat.INT4, codes, scales, -scales)


def _as_int8(weight: Tensor) -> QuantisedMatrix:
    matrix = quantise_int8(weight)
    assert matrix is not None
    return matrix


def main() -> None:
    """Measure; print, and write a results file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write a results file")
    options = parser.parse_args()
    started_at = datetime.now(UTC)
    torch.set_num_threads(1)
    num_cores = len(os.sched_getaffinity(0))
    packer, all_cores, plain = Packer(1), Packer(num_cores), _random_weights()
    num_weights = sum(weight.numel() for weight in plain)
    quantise_s = _least_s(lambda: list(map(_as_int8, plain)), rounds=2) / num_weights * 1e9
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, convert in {"bfloat16": None, "int8": _as_int8, "int4": _as_int4}.items():
            weights = plain if convert is None else list(map(convert, plain))
            rows.append({"format": name, **measure(packer, all_cores, weights, Path(folder))})
            sys.stdout.write(f"{rows[-1]}\n")
            sys.stdout.flush()
    sys.stdout.write(f"quantise to int8: {quantise_s:.3f} s per 10^9 weights\n")
    if options.save:
        figures = {"level": packer.library.level, "quantise_int8_s_per_g_weights": quantise_s, "formats": rows}
        sys.stdout.write(f"wrote {shown(write_report('formats-packing', started_at, figures))}\n")


if __name__ == "__main__":
    main()
