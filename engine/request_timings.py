"""Where a group spent the time of a request: what it tells with a request's first token and with its end."""

import msgspec


class StayTimes(msgspec.Struct, array_like=True):
    """A request's wait for a place on the ranks and its time there, up to its end or its preemption."""

    queued_s: float = 0.0
    """From acceptance, or preemption, to a row of its own."""
    kv_wait_s: float = 0.0
    """The part of `queued_s` in which the first in the queue lacked free KV blocks; the rest is for rows and budget."""
    prefill_s: float = 0.0
    """From there to the first token of the stay."""
    decode_s: float = 0.0
    """From there to the end of the stay."""
    num_tokens: int = 0
    """Known when the stay began: the prompt, and output of former stays and groups."""
    num_cached_tokens: int = 0
    """Those of them that the prefix cache had."""


class RequestTimings(msgspec.Struct, frozen=True, array_like=True):
    """One group's part of a request, from acceptance on, without gaps, by the group's clock.

    A request that was preempted has had several stays; sums are over all of them.
    """

    stays: list[StayTimes]

    @property
    def queued_s(self) -> float:
        """Time waiting for a row, tokens to spare in a step, or KV blocks."""
        return sum(stay.queued_s for stay in self.stays)

    @property
    def kv_wait_s(self) -> float:
        """The part of it that lack of KV blocks is to blame for."""
        return sum(stay.kv_wait_s for stay in self.stays)

    @property
    def prefill_s(self) -> float:
        """Time on a row without a token to show."""
        return sum(stay.prefill_s for stay in self.stays)

    @property
    def decode_s(self) -> float:
        """Time on a row after a stay's first token."""
        return sum(stay.decode_s for stay in self.stays)

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.queued_s + self.prefill_s + self.decode_s

    @property
    def num_preemptions(self) -> int:
        """How often it was put back into the queue."""
        return len(self.stays) - 1

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that the prefix cache had when the request first ran."""
        return self.stays[0].num_cached_tokens
