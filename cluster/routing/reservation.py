"""A request's claim on one group: the only way to get a group, so that no path can forget to count."""

from types import TracebackType

from cluster.routing.base import RoutingRequest
from cluster.routing.ledger import Ledger, Work
from cluster.routing.output_lengths import OutputLengths
from cluster.routing.prefix_index import Expectation


class Reservation:
    """Counts on its group until it is taken back, exactly once: on leaving the context, by `release` or by `failed`."""

    def __init__(
        self,
        ledger: Ledger,
        request: RoutingRequest,
        num_cached_tokens: int,
        expectation: Expectation | None,
        lengths: OutputLengths,
    ) -> None:
        self._ledger = ledger
        self._request = request
        self._expectation = expectation
        self._lengths = lengths
        self._num_cached_tokens = num_cached_tokens
        self._num_output_tokens = 0
        self._is_accepted = False
        self._is_released = False
        num_uncached_tokens = request.num_tokens - num_cached_tokens
        self._work = Work(
            num_queued_tokens=num_uncached_tokens,
            num_outstanding_tokens=num_uncached_tokens + request.max_tokens,
            num_waiting=1,
        )
        ledger.open(self)

    @property
    def group_id(self) -> str:
        """The group that was picked."""
        return self._ledger.group_id

    @property
    def is_accepted(self) -> bool:
        """Whether the group has the request."""
        return self._is_accepted

    @property
    def work(self) -> Work:
        """What it counts for at present."""
        return self._work

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompt, what the group was expected to find in its prefix cache."""
        return self._num_cached_tokens

    @property
    def num_outstanding_tokens(self) -> int:
        """What the group has still to compute for this request, as far as known; 0 once released."""
        return 0 if self._is_released else self._work.num_outstanding_tokens

    def accepted(self) -> None:
        """Note that the group took the request: its later reports hold this reservation. Idempotent."""
        self._is_accepted = True

    def progress(self, num_tokens: int) -> None:
        """Note that `num_tokens` new tokens came, which also means that the prompt is computed."""
        if self._is_released or num_tokens <= 0:
            return
        if not self._num_output_tokens:
            self._ledger.breaker.note_success()
        self._num_output_tokens += num_tokens
        work = Work(
            num_queued_tokens=0,
            num_outstanding_tokens=max(0, self._request.max_tokens - self._num_output_tokens),
            num_kv_tokens=self._request.num_tokens + self._num_output_tokens,
            num_waiting=0,
            num_running=1,
        )
        self._ledger.change(self, work)
        self._work = work

    def failed(self) -> None:
        """Release, and note that the group broke under the request; one that often does is left alone for a while."""
        if not self._is_released:
            self._ledger.breaker.note_failure(self._ledger.clock.now_s())
        self.release()

    def release(self) -> None:
        """Count no longer, and learn from the output's length. Idempotent."""
        if self._is_released:
            return
        self._is_released = True
        self._ledger.close(self)
        if self._expectation is not None:
            self._expectation.drop()
        if self._num_output_tokens:
            self._lengths.learn(self._request.model, self._num_output_tokens)

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
