"""Which of several ranks' last words is the cause.

When one rank dies, the others fail in their next collective and say so, perhaps before the end of the dead one's
connection is seen. The cause is the rank that has something of its own to report, or that left without a word.
"""

from collections.abc import Iterable

from core.errors import EaglerayError, RankDied, ReplicaFailed, StartupError
from engine.rank_pools.connections import Arrival
from parallel.rank.messages import RankError


def is_failure(arrival: Arrival) -> bool:
    """Whether the rank cannot go on."""
    return arrival.message is None or isinstance(arrival.message, RankError)


def is_second_hand(arrival: Arrival) -> bool:
    """Whether the rank only reports that another one is gone."""
    return isinstance(arrival.message, RankError) and arrival.message.error.code == RankDied.code


def cause_of(failures: Iterable[Arrival]) -> Arrival | None:
    """Return the first failure that is not a consequence of another, None if there is none yet."""
    reported: set[int] = set()
    for failure in failures:
        if isinstance(failure.message, RankError):
            reported.add(failure.rank)
            if not is_second_hand(failure):
                return failure
        elif failure.rank not in reported:
            return failure
    return None


def to_pool_error(message: RankError) -> EaglerayError:
    """Return the error a rank reported, as one of the classes a RankPool may raise."""
    error = message.error.to_error()
    if isinstance(error, ReplicaFailed | StartupError):
        return error
    return ReplicaFailed(f"rank {message.rank} failed: {error.message}")
