"""Fake ranks whose steps take time on a FakeClock, so that load can be played in virtual seconds."""

import msgspec

from parallel.plan import StepPlan, StepResult, unpack_integers
from tests.support.fake_clock import FakeClock
from tests.support.fake_ranks import FakeRankPool


class TimedRanks(FakeRankPool):
    """A step takes base_s, and more for each prompt token and each sampled one."""

    def __init__(self, clock: FakeClock, base_s: float, prefill_token_s: float, sequence_s: float) -> None:
        super().__init__()
        self.clock = clock
        self.costs = (base_s, prefill_token_s, sequence_s)

    def submit(self, plan: StepPlan) -> None:
        super().submit(plan)
        result = self._results.pop()
        num_prefill = sum(chunk.num_tokens for chunk in plan.chunks or ())
        base_s, prefill_token_s, sequence_s = self.costs
        seconds = base_s + num_prefill * prefill_token_s + len(unpack_integers(result.sampled.rows)) * sequence_s
        self._results.append(msgspec.structs.replace(result, rank_time_s=seconds))

    def collect(self, timeout_s: float) -> StepResult:
        result = super().collect(timeout_s)
        self.clock.advance(result.rank_time_s)
        return result
