"""Weights into the order that kernels read them in, on all the threads of a rank.

R outputs, I inputs, G groups.

Most of the time goes into memory that is written for the first time (docs/decisions/0007), which threads share as well.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref

import torch
from torch import Tensor

from parallel.cpu.abi import PANEL, Matrix
from parallel.cpu.library import KernelLibrary
from parallel.formats.quantised import QuantisedMatrix

_WORTHWHILE_WEIGHTS = 2**20
"""Weights of a thread's part; starting one takes longer than packing a small part."""


def pack(library: KernelLibrary, matrix: Matrix, weight_RI: Tensor | QuantisedMatrix, num_threads: int) -> None:
    """Fill the buffer that `matrix` refers to. A weight that is not bfloat16 is rounded to it."""
    if isinstance(weight_RI, QuantisedMatrix):
        pack_outputs = _pack_codes(library, matrix, weight_RI)
    else:
        pack_outputs = _pack_plain(library, matrix, weight_RI.to(torch.bfloat16).contiguous())
    num_parts = min(num_threads, matrix.num_outputs * matrix.num_inputs // _WORTHWHILE_WEIGHTS)
    if num_parts <= 1:
        pack_outputs(0, matrix.num_outputs)
        return
    bounds = _bounds(matrix.num_outputs, num_parts)
    with ThreadPoolExecutor(num_parts) as executor:
        list(executor.map(pack_outputs, bounds, bounds[1:]))


def _bounds(num_outputs: int, num_parts: int) -> list[int]:
    """Return where parts begin and end: at whole panels, but for the last."""
    num_panels = -(-num_outputs // PANEL)
    return [min(num_outputs, PANEL * (num_panels * part // num_parts)) for part in range(num_parts + 1)]


def _pack_plain(library: KernelLibrary, matrix: Matrix, weight_RI: Tensor) -> Callable[[int, int], None]:
    def pack_outputs(first: int, last: int) -> None:
        library.calls.eg_pack_bf16(byref(matrix), first, last - first, weight_RI[first:last].data_ptr())

    return pack_outputs


def _pack_codes(library: KernelLibrary, matrix: Matrix, weight_RI: QuantisedMatrix) -> Callable[[int, int], None]:
    parts = (weight_RI.codes_RI, weight_RI.scales_RG, weight_RI.minimums_RG)
    arrays = [part.contiguous() for part in parts if part is not None]
    call = library.calls.eg_pack_int8 if weight_RI.minimums_RG is None else library.calls.eg_pack_int4

    def pack_outputs(first: int, last: int) -> None:
        call(byref(matrix), first, last - first, *(array[first:last].data_ptr() for array in arrays))

    return pack_outputs
