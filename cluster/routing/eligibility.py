"""Which groups may be picked at all. A rule that would leave none is waived: better a doubtful group than none."""

from collections.abc import Sequence

from pydantic import NonNegativeFloat

from cluster.routing.ledger import Ledger
from core.config import Config


class EligibilityConfig(Config):
    """How long silence and youth matter."""

    stale_after_s: NonNegativeFloat = 2.0
    """A group whose last report is older is trusted half as much."""
    eject_after_s: NonNegativeFloat | None = 5.0
    """A group whose last report is older gets no work; None for groups that never report."""
    slow_start_s: NonNegativeFloat = 5.0
    """A group that the router saw come, this recently, has a cold cache and gets only its share of work, below."""
    slow_start_share: NonNegativeFloat = 0.25
    """Most work of a new group, of the mean of the others."""


def eligible(ledgers: Sequence[Ledger], now_s: float, config: EligibilityConfig) -> Sequence[Ledger]:
    """Return those of `ledgers` that may be picked, in their order: never none. Marks the stale in their views."""
    working = [ledger for ledger in ledgers if ledger.breaker.blocked_until_s <= now_s] or ledgers
    reporting = _reporting(working, now_s, config)
    warm = [ledger for ledger in reporting if ledger.warm_from_s <= now_s]
    if not warm or len(warm) == len(reporting):
        return reporting
    mean_work = sum(ledger.view.num_outstanding_tokens for ledger in warm) / len(warm)
    most_work = mean_work * config.slow_start_share
    return [
        ledger for ledger in reporting if ledger.warm_from_s <= now_s or ledger.view.num_outstanding_tokens <= most_work
    ]


def _reporting(ledgers: Sequence[Ledger], now_s: float, config: EligibilityConfig) -> Sequence[Ledger]:
    if config.eject_after_s is None:
        return ledgers
    for ledger in ledgers:
        ledger.view.is_stale = now_s - ledger.reported_s > config.stale_after_s
    ejected_s = now_s - config.eject_after_s
    return [ledger for ledger in ledgers if ledger.reported_s >= ejected_s] or ledgers
