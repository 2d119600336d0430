"""A step's numbers on their way to the device: written on the host once, in page-locked memory, copied in one piece.

In one piece, because a copy between strided tensors goes through memory that is not page-locked, and the host would
wait for the steps before it.

T tokens in step, B rows in step, M blocks of a row, S rows that sample.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel.cuda.batch import CudaBatch
from parallel.cuda.choose import RowSampling
from parallel.cuda.device import GraphDevice
from parallel.rank.rows import StepInputs
from parallel.sampling.rows import NO_TOP_K, SampleBatch

NOWHERE = -1
"""Slot of a row of padding: its keys and values are written nowhere."""
_ALIGNMENT = 16
"""Bytes; kernels are compiled for pointers that are multiples of it, and again for others."""
_NUM_INTEGERS = 7
_TORCH_DTYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float64): torch.float64,
    np.dtype(np.float32): torch.float32,
}


class DecodeNumbers(NamedTuple):
    """What a padded decode step reads, but for its blocks: int64, the last four float64."""

    token_ids_B: Tensor
    positions_B: Tensor
    slots_B: Tensor
    rows_B: Tensor
    is_unknown_B: Tensor
    context_lens_B: Tensor
    top_k_B: Tensor
    temperature_B: Tensor
    uniform_B: Tensor
    top_p_B: Tensor
    min_p_B: Tensor

    @property
    def sampling(self) -> RowSampling:
        """As the sampler is given it; call inside what is recorded."""
        return RowSampling(self.temperature_B.float(), self.uniform_B, self.top_k_B, self.top_p_B, self.min_p_B)


_NUM_KINDS = len(DecodeNumbers._fields)


class DecodeTensors:
    """The tensors that recorded decode steps read. They keep their addresses; each step writes other numbers."""

    def __init__(self, max_rows: int, max_blocks: int, on: GraphDevice) -> None:
        """`max_rows` is the largest padded batch; row number `max_rows` stands for padding."""
        self._padding_row = max_rows
        num_words = _end_of_numbers(max_rows) + max_rows * max_blocks
        # A step's numbers, kind after kind, then its blocks, row after row: how long each is depends on the step.
        self._words = torch.zeros(num_words, dtype=torch.int64, device=on.device)
        self._block_table = torch.zeros((max_rows, max_blocks), dtype=torch.int64, device=on.device)
        # Two, because the copy of one step may be under way when the next is written.
        self._staged = [on.pinned(num_words, dtype=torch.int64) for _ in range(2)]
        self._turn = 0

    def numbers(self, num_padded: int) -> DecodeNumbers:
        """Return the numbers of steps of so many rows."""
        words = self._words[: _end_of_numbers(num_padded)].view(_NUM_KINDS, -1)[:, :num_padded]
        return DecodeNumbers(*words[:_NUM_INTEGERS], *words[_NUM_INTEGERS:].view(torch.float64))

    def batch(self, num_padded: int) -> CudaBatch:
        """Return steps of so many rows as attention is given them; call inside what is recorded."""
        numbers = self.numbers(num_padded)
        return CudaBatch.decoding(
            numbers.slots_B, self._block_table[:num_padded], numbers.context_lens_B.to(torch.int32)
        )

    def write_padding(self, num_padded: int) -> None:
        """Make every row padding: a step over it changes nothing that another step reads."""
        self._words[: _end_of_numbers(num_padded)].zero_()
        numbers = self.numbers(num_padded)
        numbers.rows_B.fill_(self._padding_row)
        numbers.slots_B.fill_(NOWHERE)

    def write(self, inputs: StepInputs, batch: SampleBatch, num_padded: int) -> None:
        """Start the copy of a step whose rows compute a token each, padded to `num_padded` rows."""
        staged = self._staged[self._turn]
        self._turn = 1 - self._turn
        num_rows, num_blocks = inputs.block_table_BM.shape
        first = _end_of_numbers(num_padded)
        stop = first + num_rows * num_blocks
        words = staged.numpy()
        kinds = words[:first].reshape(_NUM_KINDS, -1)[:, :num_padded]
        _write_rows(kinds[: _NUM_INTEGERS - 1], inputs, self._padding_row)
        _write_sampling(batch, kinds[_NUM_INTEGERS - 1], *kinds[_NUM_INTEGERS:].view(np.float64))
        words[first:stop].reshape(num_rows, num_blocks)[:] = inputs.block_table_BM
        self._words[:stop].copy_(staged[:stop], non_blocking=True)
        # From the device to itself: the table's stride is part of what was recorded, the step's width is not.
        self._block_table[:num_rows, :num_blocks].copy_(self._words[first:stop].view(num_rows, num_blocks))


class StepTensors(NamedTuple):
    """A step of any shape on the device; nothing is kept for the next."""

    token_ids_T: Tensor
    positions_T: Tensor
    last_token_S: Tensor
    rows_S: Tensor
    unknown_T: Tensor
    unknown_rows: Tensor
    sampling: RowSampling
    batch: CudaBatch

    @classmethod
    def upload(cls, inputs: StepInputs, batch: SampleBatch, on: GraphDevice) -> "StepTensors":
        """Start the copy of a step; return what it arrives in."""
        starts_B1 = np.zeros(len(inputs.query_lens_B) + 1, np.int32)
        inputs.query_lens_B.cumsum(out=starts_B1[1:])
        step = (
            inputs.token_ids_T,
            inputs.positions_T,
            inputs.last_token_S,
            inputs.sampled_rows_S,
            inputs.unknown_T,
            inputs.unknown_rows,
        )
        sampling = _sampling_arrays(batch, len(inputs.sampled_rows_S))
        rows = (inputs.slots_T, inputs.block_table_BM, starts_B1, inputs.context_lens_B.astype(np.int32))
        tensors = upload((*step, *sampling, *rows), on)
        slots_T, block_table_BM, query_starts_B1, context_lens_B = tensors[len(step) + len(sampling) :]
        return cls(
            *tensors[: len(step)],
            sampling=RowSampling(*tensors[len(step) : len(step) + len(sampling)]),
            batch=CudaBatch(
                query_lens=tuple(inputs.query_lens_B.tolist()),
                context_lens=tuple(inputs.context_lens_B.tolist()),
                slots_T=slots_T,
                block_table_BM=block_table_BM,
                query_starts_B1=query_starts_B1,
                context_lens_B=context_lens_B,
                has_decode_rows=bool((inputs.query_lens_B == 1).any()),
                has_longer_rows=bool((inputs.query_lens_B > 1).any()),
            ),
        )


def upload(arrays: Sequence[NDArray[np.generic]], on: GraphDevice) -> list[Tensor]:
    """Return the arrays on the device, where they arrive before whatever is launched from now on; nothing waits.

    One copy, from memory that is taken anew: torch gives it away again only when the copy is over.
    """
    lengths = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]
    firsts = list(accumulate(lengths, initial=0))
    staged = on.pinned(firsts[-1], dtype=torch.uint8)
    host = staged.numpy()
    for first, array in zip(firsts, arrays, strict=False):
        host[first : first + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
    device = staged.to(on.device, non_blocking=True)
    return [
        device[first : first + array.nbytes].view(_TORCH_DTYPES[array.dtype]).view(array.shape)
        for first, array in zip(firsts, arrays, strict=False)
    ]


def row_sampling(batch: SampleBatch, num_rows: int, on: GraphDevice) -> RowSampling:
    """Start the copy of how so many rows choose; return what it arrives in."""
    return RowSampling(*upload(_sampling_arrays(batch, num_rows), on))


def has_filters(batch: SampleBatch) -> bool:
    """Return whether a row has top-k, top-p or min-p."""
    return bool((batch.top_k_P < NO_TOP_K).any() or (batch.top_p_P < 1).any() or (batch.min_p_P > 0).any())


def _end_of_numbers(num_padded: int) -> int:
    """Return how many words all kinds take; each begins at a multiple of the alignment, also for an odd number."""
    return _NUM_KINDS * (num_padded + num_padded % 2)


def _write_rows(kinds: NDArray[np.int64], inputs: StepInputs, padding_row: int) -> None:
    """Write what the model reads; rows beyond the step's are padding."""
    num_rows = len(inputs.rows_B)
    token_ids, positions, slots, rows, is_unknown, context_lens = kinds
    token_ids[:num_rows], token_ids[num_rows:] = inputs.token_ids_T, 0
    positions[:num_rows], positions[num_rows:] = inputs.positions_T, 0
    slots[:num_rows], slots[num_rows:] = inputs.slots_T, NOWHERE
    rows[:num_rows], rows[num_rows:] = inputs.rows_B, padding_row
    context_lens[:num_rows], context_lens[num_rows:] = inputs.context_lens_B, 0
    is_unknown[:] = 0
    is_unknown[inputs.unknown_T] = 1


def _sampling_arrays(batch: SampleBatch, num_rows: int) -> tuple[NDArray[np.generic], ...]:
    """Return the arrays of a RowSampling."""
    top_k = np.empty(num_rows, np.int64)
    temperature, uniform, top_p, min_p = np.empty((4, num_rows))
    _write_sampling(batch, top_k, temperature, uniform, top_p, min_p)
    return temperature.astype(np.float32), uniform, top_k, top_p, min_p


def _write_sampling(
    batch: SampleBatch,
    top_k: NDArray[np.int64],
    temperature: NDArray[np.float64],
    uniform: NDArray[np.float64],
    top_p: NDArray[np.float64],
    min_p: NDArray[np.float64],
) -> None:
    """Write how rows choose; rows without a temperature, and padding, take the most likely token."""
    temperature[:] = uniform[:] = min_p[:] = 0
    top_p[:], top_k[:] = 1, NO_TOP_K
    random_P = batch.random_P
    temperature[random_P], uniform[random_P] = batch.temperature_P, batch.uniform_P
    top_k[random_P], top_p[random_P], min_p[random_P] = batch.top_k_P, batch.top_p_P, batch.min_p_P
