"""How many requests of a gateway may be sent again, so that a dying fleet is not hammered to death."""

from core.clock import Clock

_REFILL_S = 10.0
_MIN_CAPACITY = 16
_CAPACITY_PER_STREAM = 5


class RetryBudget:
    """A token bucket that holds five retries for each open stream and fills in ten seconds.

    So the death of any group, even of all of them at once, has every stream tried again at once; when groups go on
    dying, streams wait for their turn.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._num_taken = 0.0
        self._taken_at_s = clock.now_s()

    def take(self, num_open_streams: int) -> float:
        """Take one retry; return the seconds to wait before it."""
        capacity = max(_MIN_CAPACITY, _CAPACITY_PER_STREAM * num_open_streams)
        now_s = self._clock.now_s()
        refilled = (now_s - self._taken_at_s) * capacity / _REFILL_S
        self._num_taken = max(0.0, self._num_taken - refilled) + 1
        self._taken_at_s = now_s
        return max(0.0, self._num_taken - capacity) * _REFILL_S / capacity
