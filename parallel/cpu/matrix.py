"""Weights packed for the C library, and what is done with them: products and lookups.

T tokens, I inputs, R outputs, D model dim.
"""

from ctypes import byref

import torch
from torch import Tensor

from parallel.cpu.abi import Format, Matrix
from parallel.cpu.arena import Arena
from parallel.cpu.library import KernelLibrary
from parallel.cpu.packing import pack
from parallel.cpu.threads import ThreadPool
from parallel.formats.quantised import QuantFormat, QuantisedMatrix

_FORMATS = {QuantFormat.INT8: Format.INT8, QuantFormat.INT4: Format.INT4}


class CpuMatmul:
    """y_TR = x_TI @ W_RI^T + bias_R on float32 activations, W in bfloat16 or in the codes it came in.

    The inputs of a product are rounded to bfloat16, or to int8 with a scale per 32.
    """

    def __init__(
        self,
        library: KernelLibrary,
        threads: ThreadPool,
        arena: Arena,
        weight_RI: Tensor | QuantisedMatrix,
        bias_R: Tensor | None,
    ) -> None:
        """Pack a copy of the weight into the arena. A weight that is not bfloat16 is rounded to it."""
        kept = _format_of(weight_RI)
        num_outputs, num_inputs = weight_RI.shape
        assert num_inputs % 2 == 0, f"{num_inputs} inputs; bfloat16 weights are multiplied in pairs"
        self._calls = library.calls
        self._threads = threads
        self._packed = arena.take(self._calls.eg_packed_bytes(kept, num_outputs, num_inputs))
        self._bias_R = None if bias_R is None else bias_R.float().contiguous()
        self.name = kept.name.lower()
        self.num_bytes = len(self._packed)
        self.matrix = Matrix(
            format=kept,
            num_outputs=num_outputs,
            num_inputs=num_inputs,
            packed=self._packed.data_ptr(),
            bias=None if self._bias_R is None else self._bias_R.data_ptr(),
        )
        """For calls that take it by address; refers to memory that this object keeps alive."""
        pack(library, self.matrix, weight_RI, threads.num_threads)

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return y_TR; `x_TI` is float32."""
        x_TI = x_TI.contiguous()
        y_TR = x_TI.new_empty((len(x_TI), self.matrix.num_outputs))
        pool = self._threads.pointer
        self._calls.eg_matmul(pool, byref(self.matrix), x_TI.data_ptr(), len(x_TI), y_TR.data_ptr())
        return y_TR

    def outputs(self, rows_T: Tensor) -> Tensor:
        """Return rows of W as x_TI in float32, zeros for those that are not in it; `rows_T` is int64."""
        rows_T = rows_T.contiguous()
        x_TI = torch.empty((len(rows_T), self.matrix.num_inputs))
        pool = self._threads.pointer
        self._calls.eg_embed(pool, byref(self.matrix), rows_T.data_ptr(), len(rows_T), x_TI.data_ptr())
        return x_TI

    def shares(self, weight: Tensor) -> bool:
        """Never: a packed weight is a copy."""
        return False


class CpuEmbedding:
    """x_TD = rows of a packed weight, by token id."""

    def __init__(self, matmul: CpuMatmul, is_tied: bool = True) -> None:
        """Read the weight of `matmul`, which takes no more memory where that is the head's as well."""
        self._matmul = matmul
        self.matrix = matmul.matrix
        self.num_bytes = 0 if is_tied else matmul.num_bytes

    def __call__(self, rows_T: Tensor) -> Tensor:
        """Return x_TD."""
        return self._matmul.outputs(rows_T)


def _format_of(weight: Tensor | QuantisedMatrix) -> Format:
    return Format.BF16 if isinstance(weight, Tensor) else _FORMATS[weight.format]
