"""Times that requests met, counted into fine buckets: cheap to note, and those of many seconds or gateways add up.

Buckets grow by a twelfth of an octave, so what is read from one is within 3 % of what was noted.
"""

from collections import defaultdict
from math import log2

import msgspec

FIRST_BUCKET_S = 1e-4
"""The middle of bucket 0; everything shorter is in it too."""
BUCKETS_PER_OCTAVE = 12
NUM_BUCKETS = 280
"""The last one's middle is 1000 s; everything longer is in it too."""

_OFFSET = 0.5 - BUCKETS_PER_OCTAVE * log2(FIRST_BUCKET_S)


class BucketScale(msgspec.Struct, frozen=True):
    """How to read bucket numbers: the middle of bucket `i` is first_s * 2 ** (i / per_octave) seconds."""

    first_s: float = FIRST_BUCKET_S
    per_octave: int = BUCKETS_PER_OCTAVE


class BucketCounts:
    """How many times fell into each bucket since it was last emptied."""

    def __init__(self) -> None:
        self._counts: defaultdict[int, int] = defaultdict(int)

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a time, `times` times. Every token comes through here."""
        bucket = int(BUCKETS_PER_OCTAVE * log2(seconds) + _OFFSET) if seconds > FIRST_BUCKET_S else 0
        self._counts[bucket if bucket < NUM_BUCKETS else NUM_BUCKETS - 1] += times

    def take(self) -> list[int]:
        """Return `[bucket, count, bucket, count, ...]` in order, and begin anew."""
        if not self._counts:
            return []
        counts, self._counts = self._counts, defaultdict(int)
        return [number for bucket in sorted(counts) for number in (bucket, counts[bucket])]


class ModelLatencies:
    """What requests for one model met at this gateway since the history last looked."""

    def __init__(self) -> None:
        self.first_token = BucketCounts()
        """Request received to first token."""
        self.next_token = BucketCounts()
        """Between two tokens; of tokens that came together, each has its share of the time since those before."""

    def of_request(self, received_s: float) -> "RequestLatencies":
        """Return what counts the times of a request that was received then, by `time.monotonic`."""
        return RequestLatencies(self, received_s)


class RequestLatencies:
    """One request's way into the counts of its model."""

    __slots__ = ("_model", "_received_s", "note_gap")

    def __init__(self, model: ModelLatencies, received_s: float) -> None:
        self._model = model
        self._received_s = received_s
        self.note_gap = model.next_token.add
        """Counts the time between two tokens: (seconds, number of tokens)."""

    def note_first(self, now_s: float) -> None:
        """Count the time to a choice's first token, which has just come."""
        self._model.first_token.add(now_s - self._received_s)
