"""`timings` of an answer: where its time went, for callers who ask. An extension that OpenAI does not have."""

from collections.abc import Sequence

import msgspec

from core.clock import Clock
from deployments.gateway.generation import Choice


class Timings(msgspec.Struct):
    """Seconds and counts; of several choices, those of the one that ended last, but for the first token and the total.

    `queue_s`, `prefill_s` and `decode_s` add up over every group that worked on it; what `total_s` has beyond them is
    spent in the gateway and on the way.
    """

    total_s: float
    """Request received to the last token written."""
    time_to_first_token_s: float | None
    """Request received to the first token of any choice; null if there was none."""
    queue_s: float
    """In a group, waiting to be computed."""
    kv_wait_s: float
    """The part of that in which the group lacked free KV blocks."""
    prefill_s: float
    decode_s: float
    hold_s: float
    """In the gateway, waiting for a group that can take it."""
    resumes: int
    """How often another group had to go on with it."""
    preemptions: int
    """How often a group put it back into its queue."""
    group: str | None
    """The group that ended it."""

    @classmethod
    def of(cls, choices: Sequence[Choice], received_s: float, clock: Clock) -> "Timings":
        """Return those of choices that have run."""
        first_s = min(
            (choice.first_token_at_s for choice in choices if choice.first_token_at_s is not None), default=None
        )
        trail = max((choice.trail for choice in choices), key=lambda trail: trail.ended_s)
        told = [part.timings for part in trail.parts if part.timings is not None]
        return cls(
            total_s=_rounded(clock.now_s() - received_s),
            time_to_first_token_s=None if first_s is None else _rounded(first_s - received_s),
            queue_s=_rounded(trail.total_s("queue")),
            kv_wait_s=_rounded(sum(timings.kv_wait_s for timings in told)),
            prefill_s=_rounded(trail.total_s("prefill")),
            decode_s=_rounded(trail.total_s("decode")),
            hold_s=_rounded(trail.hold_s),
            resumes=trail.num_resumes,
            preemptions=sum(timings.num_preemptions for timings in told),
            group=trail.parts[-1].group_id if trail.parts else None,
        )


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
