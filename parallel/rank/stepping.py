"""From a step's inputs to its tokens. On a GPU they are under way when the next step is launched.

S rows that sample, V vocabulary rows on this rank.
"""

from typing import Protocol

from torch import Tensor

from parallel.rank.forward import Forward
from parallel.rank.rows import StepInputs
from parallel.sampling.rows import SampleBatch
from parallel.sampling.sampler import Sampled


class PendingTokens(Protocol):
    """Tokens that a device computes."""

    def is_done(self) -> bool:
        """Whether `wait` returns at once."""
        ...

    def wait(self) -> Sampled:
        """Return the tokens; blocks. Raises RankDied, OutOfMemory."""
        ...


class StepSampler(Protocol):
    """Chooses tokens; `parallel.sampling.sampler.Sampler` is one."""

    def sample(self, logits_SV: Tensor, batch: SampleBatch) -> Sampled:
        """Return one token for each row; may mutate `logits_SV` (float32)."""
        ...


class StepRunner(Protocol):
    """Computes steps in the order in which they are launched. `launch` is a collective."""

    def launch(self, inputs: StepInputs, batch: SampleBatch) -> PendingTokens:
        """Start forward pass and sampling; `inputs` and `batch` may be reused when it returns.

        Rows in `inputs.unknown_T` go on with the token that the step before sampled for them, which the device has.
        """
        ...


class DirectRunner:
    """Computes in `launch`: for devices that the host waits for anyway."""

    def __init__(self, forward: Forward, sampler: StepSampler) -> None:
        self.forward = forward
        self._sampler = sampler

    def launch(self, inputs: StepInputs, batch: SampleBatch) -> PendingTokens:
        """Return the tokens."""
        assert not len(inputs.unknown_T), "every step is finished before the next is launched"
        logits_SV = self.forward.logits(inputs)
        return DoneTokens(self._sampler.sample(logits_SV, batch) if len(inputs.sampled_rows_S) else Sampled.nothing())


class DoneTokens:
    """Tokens that are there."""

    def __init__(self, sampled: Sampled) -> None:
        self._sampled = sampled

    def is_done(self) -> bool:
        """Return True."""
        return True

    def wait(self) -> Sampled:
        """Return the tokens."""
        return self._sampled
