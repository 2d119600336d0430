"""How many pages are kept up to date at once, and how often each may ask."""

from core.clock import Clock
from core.errors import InvalidRequest, Overloaded
from deployments.http.errors import RateLimited

FORGOTTEN_AFTER_S = 5.0
"""A page that has not asked for so long is gone, and its place is free."""
SHORTEST_PAUSE_S = 0.1
"""Between two answers to one page. A page asks once a second, more often only where there are several gateways."""
MAX_NAME_CHARACTERS = 32


class Viewers:
    """The pages that look, by the names they gave themselves. Nothing is held for one but its name and a time."""

    def __init__(self, max_viewers: int, clock: Clock) -> None:
        self._max_viewers = max_viewers
        self._clock = clock
        self._asked_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._asked_s)

    def admit(self, name: str) -> None:
        """Let the page have an answer. Raises InvalidRequest, RateLimited, Overloaded."""
        if not (name.isascii() and name.isalnum() and len(name) <= MAX_NAME_CHARACTERS):
            raise InvalidRequest(f"viewer must be 1 to {MAX_NAME_CHARACTERS} letters and digits", param="viewer")
        now_s = self._clock.now_s()
        last_s = self._asked_s.get(name)
        if last_s is not None and now_s - last_s < SHORTEST_PAUSE_S:
            raise RateLimited(f"this page asks more often than every {SHORTEST_PAUSE_S:g} s", retry_after_s=1)
        self._forget(now_s)
        if name not in self._asked_s and len(self._asked_s) >= self._max_viewers:
            raise Overloaded(
                f"{self._max_viewers} pages are open already, as many as `live.max_viewers` allows; try again later",
                retry_after_s=FORGOTTEN_AFTER_S,
            )
        self._asked_s[name] = now_s

    def _forget(self, now_s: float) -> None:
        gone = [name for name, asked_s in self._asked_s.items() if now_s - asked_s >= FORGOTTEN_AFTER_S]
        for name in gone:
            del self._asked_s[name]
