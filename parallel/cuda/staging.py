"""A step's numbers on their way to the device: written on the host once, copied in one piece a kind.

B rows of a padded decode step, M blocks of a row.
"""

import numpy as np
import torch
from torch import Tensor

from parallel.cuda.batch import CudaBatch
from parallel.cuda.choose import RowSampling
from parallel.cuda.device import GraphDevice
from parallel.rank.rows import StepInputs
from parallel.sampling.rows import NO_TOP_K, SampleBatch

NOWHERE = -1
"""Slot of a row of padding: its keys and values are written nowhere."""


class DecodeTensors:
    """The tensors that recorded decode steps read. They keep their addresses; each step writes other numbers."""

    def __init__(self, max_rows: int, max_blocks: int, on: GraphDevice) -> None:
        """`max_rows` is the largest padded batch; row number `max_rows` stands for padding."""
        self._padding_row = max_rows
        integers = torch.zeros((7, max_rows), dtype=torch.int64, device=on.device)
        self.token_ids, self.positions, self.slots, self.rows, self.is_unknown, self.context_lens, top_k = integers
        numbers = torch.zeros((4, max_rows), dtype=torch.float64, device=on.device)
        temperature, uniform, top_p, min_p = numbers
        self._sampling = (temperature, uniform, top_k, top_p, min_p)
        self.block_table = torch.zeros((max_rows, max_blocks), dtype=torch.int64, device=on.device)
        self._integers, self._numbers = integers, numbers
        # Two, because the copies of one step may be under way when the next is written.
        self._staged = [_HostSide(max_rows, max_blocks, on) for _ in range(2)]
        self._turn = 0

    def batch(self, num_rows: int) -> CudaBatch:
        """Return the first rows as attention is given them; call inside what is recorded."""
        return CudaBatch.decoding(
            self.slots[:num_rows], self.block_table[:num_rows], self.context_lens[:num_rows].to(torch.int32)
        )

    def sampling(self, num_rows: int) -> RowSampling:
        """Return the first rows as the sampler is given them; call inside what is recorded."""
        temperature, uniform, top_k, top_p, min_p = (values[:num_rows] for values in self._sampling)
        return RowSampling(temperature.float(), uniform, top_k, top_p, min_p)

    def write_padding(self, num_padded: int) -> None:
        """Make every row padding: a step over it changes nothing that another step reads."""
        self._integers[:, :num_padded] = 0
        self._numbers[:, :num_padded] = 0
        self.rows[:num_padded] = self._padding_row
        self.slots[:num_padded] = NOWHERE

    def write(self, inputs: StepInputs, batch: SampleBatch, num_padded: int) -> None:
        """Start the copies of a step whose rows compute a token each, padded to `num_padded` rows."""
        host = self._staged[self._turn]
        self._turn = 1 - self._turn
        num_rows, num_blocks = inputs.block_table_BM.shape
        host.write_rows(inputs, num_rows, num_padded, self._padding_row)
        host.write_sampling(batch, num_padded)
        host.table[:num_rows, :num_blocks].numpy()[:] = inputs.block_table_BM
        self._integers[:, :num_padded].copy_(host.integers[:, :num_padded], non_blocking=True)
        self._numbers[:, :num_padded].copy_(host.numbers[:, :num_padded], non_blocking=True)
        self.block_table[:num_rows, :num_blocks].copy_(host.table[:num_rows, :num_blocks], non_blocking=True)


class _HostSide:
    """The same numbers in memory of the host."""

    def __init__(self, max_rows: int, max_blocks: int, on: GraphDevice) -> None:
        self.integers = on.pinned(7, max_rows, dtype=torch.int64)
        self.numbers = on.pinned(4, max_rows, dtype=torch.float64)
        self.table = on.pinned(max_rows, max_blocks, dtype=torch.int64)

    def write_rows(self, inputs: StepInputs, num_rows: int, num_padded: int, padding_row: int) -> None:
        """Write what the model reads."""
        token_ids, positions, slots, rows, is_unknown, context_lens, _ = self.integers.numpy()
        token_ids[:num_rows], token_ids[num_rows:num_padded] = inputs.token_ids_T, 0
        positions[:num_rows], positions[num_rows:num_padded] = inputs.positions_T, 0
        slots[:num_rows], slots[num_rows:num_padded] = inputs.slots_T, NOWHERE
        rows[:num_rows], rows[num_rows:num_padded] = inputs.rows_B, padding_row
        context_lens[:num_rows], context_lens[num_rows:num_padded] = inputs.context_lens_B, 0
        is_unknown[:num_padded] = 0
        is_unknown[inputs.unknown_T] = 1

    def write_sampling(self, batch: SampleBatch, num_padded: int) -> None:
        """Write how rows choose; rows without a temperature, and padding, take the most likely token."""
        temperature, uniform, top_p, min_p = self.numbers.numpy()
        top_k = self.integers.numpy()[6]
        temperature[:num_padded] = uniform[:num_padded] = min_p[:num_padded] = 0
        top_p[:num_padded], top_k[:num_padded] = 1, NO_TOP_K
        random_P = batch.random_P
        temperature[random_P], uniform[random_P] = batch.temperature_P, batch.uniform_P
        top_k[random_P], top_p[random_P], min_p[random_P] = batch.top_k_P, batch.top_p_P, batch.min_p_P


def has_filters(batch: SampleBatch) -> bool:
    """Whether a row has top-k, top-p or min-p."""
    return bool((batch.top_k_P < NO_TOP_K).any() or (batch.top_p_P < 1).any() or (batch.min_p_P > 0).any())


def row_sampling(batch: SampleBatch, num_rows: int, device: torch.device) -> RowSampling:
    """Return how the rows of an unpadded step choose, on the device."""
    temperature, uniform, min_p = (np.zeros(num_rows, dtype) for dtype in (np.float32, np.float64, np.float64))
    top_k, top_p = np.full(num_rows, NO_TOP_K), np.ones(num_rows)
    random_P = batch.random_P
    temperature[random_P], uniform[random_P] = batch.temperature_P, batch.uniform_P
    top_k[random_P], top_p[random_P], min_p[random_P] = batch.top_k_P, batch.top_p_P, batch.min_p_P
    return RowSampling(*(_put(values, device) for values in (temperature, uniform, top_k, top_p, min_p)))


def _put(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
