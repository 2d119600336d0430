"""How much a key may do: requests and tokens a minute as buckets that refill evenly, and requests open at once."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from core.clock import Clock
from deployments.http.api_keys import ApiKey
from deployments.http.errors import OverTokenLimit, RateLimited

_REFILL_S = 60.0
_CONCURRENCY_RETRY_S = 1.0

RawHeaders = list[tuple[bytes, bytes]]


class Bucket:
    """Holds up to `limit`, refilled evenly in a minute. What is in it may be taken."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = limit
        self._clock = clock
        self._level = float(limit)
        self._level_at_s = clock.now_s()

    def level(self) -> float:
        """Return what is in it now."""
        now_s = self._clock.now_s()
        self._level = min(self.limit, self._level + (now_s - self._level_at_s) * self.limit / _REFILL_S)
        self._level_at_s = now_s
        return self._level

    def take(self, amount: int) -> None:
        """Have `amount` less; negative puts back."""
        self._level = min(self.limit, self.level() - amount)

    def wait_s(self, amount: int) -> float:
        """Return the seconds until `amount` can be taken; 0 if it can now."""
        return max(0.0, (amount - self.level()) * _REFILL_S / self.limit)

    def headers(self, kind: str) -> RawHeaders:
        """Return OpenAI's three headers for the limit on `kind`."""
        remaining = max(0, math.floor(self.level()))
        values = {"limit": str(self.limit), "remaining": str(remaining), "reset": _duration(self.wait_s(self.limit))}
        return [(f"x-ratelimit-{name}-{kind}".encode(), value.encode()) for name, value in values.items()]


class Reservation:
    """Tokens a request may use. `settle` once, with what it did use."""

    def __init__(self, bucket: Bucket | None, num_tokens: int) -> None:
        self._bucket = bucket
        self._num_tokens = num_tokens

    def settle(self, num_used: int) -> None:
        """Give back what was not used."""
        if self._bucket is not None:
            self._bucket.take(num_used - self._num_tokens)


class Quota:
    """What is left of one key's limits. Lives on one event loop."""

    def __init__(self, key: ApiKey, clock: Clock) -> None:
        self._name = key.name
        self._max_open = key.max_concurrent
        self._num_open = 0
        self._requests = Bucket(key.requests_per_minute, clock) if key.requests_per_minute else None
        self._tokens = Bucket(key.tokens_per_minute, clock) if key.tokens_per_minute else None

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request while it is open. Raises RateLimited, and then counts nothing."""
        if self._max_open is not None and self._num_open >= self._max_open:
            raise RateLimited(
                f"API key '{self._name}' has {self._num_open} requests open, which is its limit; wait for one to end",
                retry_after_s=_CONCURRENCY_RETRY_S,
            )
        if self._requests is not None:
            self._take(self._requests, 1, "requests")
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1

    def reserve(self, num_tokens: int) -> Reservation:
        """Take `num_tokens` until they are settled. Raises RateLimited, OverTokenLimit."""
        if self._tokens is not None:
            if num_tokens > self._tokens.limit:
                raise OverTokenLimit(
                    f"prompt and max_tokens come to {num_tokens} tokens, and API key '{self._name}' has "
                    f"{self._tokens.limit} a minute; send a smaller max_tokens, or a shorter prompt",
                    param="max_tokens",
                )
            self._take(self._tokens, num_tokens, "tokens")
        return Reservation(self._tokens, num_tokens)

    def headers(self) -> RawHeaders:
        """Return the headers that tell a caller what is left; none if nothing is limited."""
        requests = self._requests.headers("requests") if self._requests is not None else []
        tokens = self._tokens.headers("tokens") if self._tokens is not None else []
        return requests + tokens

    def _take(self, bucket: Bucket, amount: int, kind: str) -> None:
        if wait_s := bucket.wait_s(amount):
            raise RateLimited(
                f"API key '{self._name}' is over its limit of {bucket.limit} {kind} a minute: {amount} wanted, "
                f"{max(0, math.floor(bucket.level()))} left; try again in {_duration(wait_s)}",
                retry_after_s=wait_s,
            )
        bucket.take(amount)


def _duration(seconds: float) -> str:
    """Return OpenAI's spelling: 20ms, 8.64s, 1m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 100) / 100:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
