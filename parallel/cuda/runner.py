"""Steps on a GPU that the host does not wait for: decodes as recorded graphs, all others operation by operation.

A graph holds everything from token ids to sampled tokens, for one padded number of rows. The token that a row sampled
stays on the device, so the next step can be launched before the host has seen it.

B rows of a padded decode step, R rows of the row table, S rows that sample.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from parallel.attention.base import StepContext
from parallel.cuda.device import GraphDevice, Mark
from parallel.cuda.sampler import Chosen, DeviceSampler
from parallel.cuda.staging import DecodeTensors, StepTensors, has_filters, upload
from parallel.kv_cache import KVCache
from parallel.models.decoder import CausalLM
from parallel.rank.rows import StepInputs
from parallel.rank.stepping import DoneTokens, PendingTokens
from parallel.rank.tier import StepLimits
from parallel.sampling.rows import SampleBatch
from parallel.sampling.sampler import Sampled, Sampler


def buckets_of(max_rows: int) -> list[int]:
    """Return the padded numbers of rows, ascending: 1, 2, 4, every 8 to 256, then every 32; the last is `max_rows`."""
    sizes = [1, 2, 4, *range(8, 257, 8), *range(288, max_rows + 32, 32)]
    return [size for size in sizes if size < max_rows] + [max_rows]


class GraphRunner:
    """A StepRunner of one GPU. Construction is a collective, as every launch is."""

    def __init__(
        self,
        model: CausalLM,
        kv: KVCache,
        samplers: "Samplers",
        on: GraphDevice,
        limits: StepLimits,
    ) -> None:
        """Record the decode step of every padded size, the largest first: the others fit in its memory."""
        self._model = model
        self._kv = kv
        self._samplers = samplers
        self._on = on
        self._buckets = buckets_of(limits.max_rows)
        self._tensors = DecodeTensors(limits.max_rows, limits.max_blocks, on)
        self._last_token_R = torch.zeros(limits.max_rows + 1, dtype=torch.int64, device=on.device)
        self._token_ids_B = torch.zeros(limits.max_rows, dtype=torch.int64, device=on.device)
        self._is_failed_B = torch.zeros(limits.max_rows, dtype=torch.bool, device=on.device)
        self._answers = [_Answer(limits.max_rows, on) for _ in range(2)]
        self._turn = 0
        self._always_filters = samplers.device.has_cheap_filters
        self._graphs: dict[tuple[int, bool], Callable[[], None]] = {}
        with torch.inference_mode():
            for num_rows in reversed(self._buckets):
                self._graph(num_rows, self._always_filters)

    def launch(self, inputs: StepInputs, batch: SampleBatch) -> PendingTokens:
        """Start the step; waits for it only if a row wants logprobs or edits its logits."""
        num_rows = len(inputs.rows_B)
        if batch.edits is not None or len(batch.logprobs_L):
            return DoneTokens(self._sample_on_host(inputs, batch))
        if len(inputs.token_ids_T) == num_rows == len(inputs.sampled_rows_S):
            return self._replay(inputs, batch, num_rows)
        return self._launch_mixed(inputs, batch)

    def recorded_step(self, num_rows: int) -> Callable[[], None]:
        """Return what a decode step of so many rows replays, over the numbers of the latest: for measurements."""
        return self._graph(next(size for size in self._buckets if size >= num_rows), self._always_filters)

    def _replay(self, inputs: StepInputs, batch: SampleBatch, num_rows: int) -> PendingTokens:
        num_padded = next(size for size in self._buckets if size >= num_rows)
        graph = self._graph(num_padded, self._always_filters or has_filters(batch))
        self._tensors.write(inputs, batch, num_padded)
        graph()
        return self._answer(self._token_ids_B[:num_rows], self._is_failed_B[:num_rows])

    def _graph(self, num_rows: int, filters: bool) -> Callable[[], None]:
        """Return the recorded step; one with filters is recorded when it is first needed."""
        key = (num_rows, filters)
        if key not in self._graphs:
            # Recording runs the step, which must not count for any row.
            self._tensors.write_padding(num_rows)
            self._graphs[key] = self._on.record(lambda: self._decode(num_rows, filters))
        return self._graphs[key]

    def _decode(self, num_rows: int, filters: bool) -> None:
        """Launch a decode step over the persistent tensors; what a graph records."""
        numbers = self._tensors.numbers(num_rows)
        last_token_B = self._last_token_R[numbers.rows_B]
        token_ids_B = torch.where(numbers.is_unknown_B > 0, last_token_B, numbers.token_ids_B)
        context = StepContext(self._tensors.batch(num_rows), self._kv.layers)
        hidden_BD = self._model.forward(token_ids_B, numbers.positions_B, context)
        chosen = self._samplers.device.sample(self._model.logits(hidden_BD), numbers.sampling, filters)
        self._last_token_R.index_copy_(0, numbers.rows_B, chosen.token_id_S)
        self._token_ids_B[:num_rows].copy_(chosen.token_id_S)
        self._is_failed_B[:num_rows].copy_(chosen.is_failed_S)

    def _launch_mixed(self, inputs: StepInputs, batch: SampleBatch) -> PendingTokens:
        step = StepTensors.upload(inputs, batch, self._on)
        logits_SV = self._logits(step)
        if not len(step.rows_S):
            return DoneTokens(Sampled.nothing())
        chosen: Chosen = self._samplers.device.sample(logits_SV, step.sampling, has_filters(batch))
        self._last_token_R.index_copy_(0, step.rows_S, chosen.token_id_S)
        return self._answer(chosen.token_id_S, chosen.is_failed_S)

    def _sample_on_host(self, inputs: StepInputs, batch: SampleBatch) -> Sampled:
        step = StepTensors.upload(inputs, batch, self._on)
        sampled = self._samplers.host.sample(self._logits(step), batch)
        (token_ids_S,) = upload((sampled.token_ids_S,), self._on)
        self._last_token_R.index_copy_(0, step.rows_S, token_ids_S)
        return sampled

    def _logits(self, step: StepTensors) -> Tensor:
        """Launch the model on a step of any shape; return logits_SV."""
        if len(step.unknown_T):
            step.token_ids_T[step.unknown_T] = self._last_token_R[step.unknown_rows]
        context = StepContext(step.batch, self._kv.layers)
        hidden_TD = self._model.forward(step.token_ids_T, step.positions_T, context)
        return self._model.logits(hidden_TD[step.last_token_S])

    def _answer(self, token_id_S: Tensor, is_failed_S: Tensor) -> PendingTokens:
        answer = self._answers[self._turn]
        self._turn = 1 - self._turn
        return answer.fetch(token_id_S, is_failed_S, self._on)


class Samplers(NamedTuple):
    """The two ways to choose tokens."""

    device: DeviceSampler
    """Asks the host nothing."""
    host: Sampler
    """Knows logprobs and edits, and waits."""


class _Answer:
    """Memory of the host for one step's tokens."""

    def __init__(self, max_rows: int, on: GraphDevice) -> None:
        self._token_ids = on.pinned(max_rows, dtype=torch.int64)
        self._is_failed = on.pinned(max_rows, dtype=torch.bool)

    def fetch(self, token_id_S: Tensor, is_failed_S: Tensor, on: GraphDevice) -> "_FetchedTokens":
        """Start the copies."""
        num_rows = len(token_id_S)
        token_ids, is_failed = self._token_ids[:num_rows], self._is_failed[:num_rows]
        token_ids.copy_(token_id_S, non_blocking=True)
        is_failed.copy_(is_failed_S, non_blocking=True)
        return _FetchedTokens(token_ids, is_failed, on.mark())


class _FetchedTokens:
    """Tokens on their way to the host."""

    def __init__(self, token_ids: Tensor, is_failed: Tensor, mark: Mark) -> None:
        self._token_ids = token_ids
        self._is_failed = is_failed
        self._mark = mark

    def is_done(self) -> bool:
        """Whether they have arrived."""
        return self._mark.is_reached()

    def wait(self) -> Sampled:
        """Return them; blocks."""
        self._mark.wait()
        return Sampled(self._token_ids.numpy().copy(), self._is_failed.numpy().copy(), {})
