"""Keeps requests away from a group that fails them, and lets one through now and then to see whether it still does."""

MAX_FAILURES = 3
WITHIN_S = 10.0
RETRY_AFTER_S = 5.0
"""Less, and one bad request shuts a group out; more, and many requests notice."""


class Breaker:
    """One group's recent failures. Times are the caller's."""

    def __init__(self) -> None:
        self.blocked_until_s = float("-inf")
        """The group gets no request before this time."""
        self._failed_s: list[float] = []
        self._is_tripped = False

    def note_pick(self, now_s: float) -> None:
        """Take note of a request to the group: of one that failed before, it is the trial, and others wait for it."""
        if self._is_tripped:
            self.blocked_until_s = now_s + RETRY_AFTER_S

    def note_failure(self, now_s: float) -> None:
        """Take note that the group broke under a request."""
        self._failed_s = [failed_s for failed_s in self._failed_s if now_s - failed_s < WITHIN_S]
        self._failed_s.append(now_s)
        if self._is_tripped or len(self._failed_s) >= MAX_FAILURES:
            self._is_tripped = True
            self.blocked_until_s = now_s + RETRY_AFTER_S

    def note_success(self) -> None:
        """Take note that the group computed a token: whatever was wrong is over."""
        self._failed_s.clear()
        self._is_tripped = False
        self.blocked_until_s = float("-inf")
