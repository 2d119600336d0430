"""Packing on several threads gives the bytes that one thread gives."""

import ctypes

import pytest
import torch

from parallel.cpu import packing
from parallel.cpu.arena import Arena
from parallel.cpu.library import KernelLibrary
from parallel.cpu.matrix import CpuMatmul
from parallel.cpu.threads import ThreadPool
from parallel.formats.quantised import QuantFormat, QuantisedMatrix

NUM_INPUTS = 96


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return KernelLibrary.load()


def packed_bytes(library: KernelLibrary, num_threads: int, weight: torch.Tensor | QuantisedMatrix) -> bytes:
    threads = ThreadPool(library, num_threads)
    try:
        matmul = CpuMatmul(library, threads, Arena(), weight, None)
        return ctypes.string_at(matmul.matrix.packed, matmul.num_bytes)
    finally:
        threads.close()


def weights(num_outputs: int) -> dict[str, torch.Tensor | QuantisedMatrix]:
    generator = torch.Generator().manual_seed(num_outputs)
    codes = torch.randint(0, 16, (num_outputs, NUM_INPUTS), generator=generator)
    scales = torch.rand(num_outputs, NUM_INPUTS // 32, generator=generator).half()
    return {
        "bfloat16": torch.randn(num_outputs, NUM_INPUTS, generator=generator).bfloat16(),
        "int8": QuantisedMatrix(QuantFormat.INT8, codes.to(torch.int8), scales),
        "int4": QuantisedMatrix(QuantFormat.INT4, codes.to(torch.uint8), scales, -scales),
    }


@pytest.mark.parametrize("num_outputs", [1, 16, 40, 200, 512])
@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_threads_pack_as_one_does(
    library: KernelLibrary, num_outputs: int, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_WORTHWHILE_WEIGHTS", 16)
    for name, weight in weights(num_outputs).items():
        alone, shared = (packed_bytes(library, count, weight) for count in (1, num_threads))
        assert alone == shared and any(alone), name
