"""Which replica group a request goes to, counted from the moment of the choice.

A router sees each group's outstanding token work as

    own    what this router has reserved there and not yet seen done, exact and up to date
  + others what the group last reported, less what of `own` that report already held

A report travels on the same ordered connection as the group's acceptances, so it holds exactly the reservations that
were accepted before it arrived. `others` stays as it was until the next report; `own` moves with every reservation and
token. Counting at the choice, not at the acceptance, is what keeps a burst from landing on one group.

Pure: no asyncio, no Ray, no clock, so a simulator runs the same object. Used by one thread.
"""

from collections.abc import Sequence
from types import TracebackType

from cluster.routing.base import GroupView, RoutingPolicy, RoutingRequest
from engine.request import EngineLoad


class _Ledger:
    """One group's account. Outlives the router's memory of the group while reservations on it are open."""

    def __init__(self, group_id: str) -> None:
        self.group_id = group_id
        self.num_own_tokens = 0
        self.num_own_accepted_tokens = 0
        self.num_other_tokens = 0
        self.num_waiting = 0
        self.num_running = 0
        self.last_pick = 0

    def view(self) -> GroupView:
        """Return what a policy may see."""
        return GroupView(
            self.group_id,
            num_outstanding_tokens=self.num_own_tokens + self.num_other_tokens,
            num_waiting=self.num_waiting,
            num_running=self.num_running,
        )


class Reservation:
    """A request's claim on one group, taken back exactly once: on leaving the context, or by `release`."""

    def __init__(self, ledger: _Ledger, request: RoutingRequest) -> None:
        self._ledger = ledger
        self._num_prefill_tokens = request.num_tokens
        self._num_decode_tokens = request.max_tokens
        self._is_accepted = False
        self._is_released = False
        ledger.num_own_tokens += request.num_tokens + request.max_tokens

    @property
    def group_id(self) -> str:
        """The group that was picked."""
        return self._ledger.group_id

    @property
    def num_outstanding_tokens(self) -> int:
        """Work of this request the group has still to do; 0 once released."""
        return self._num_prefill_tokens + self._num_decode_tokens

    def accepted(self) -> None:
        """Note that the group took the request: its later reports hold this reservation too. Idempotent."""
        if not self._is_accepted and not self._is_released:
            self._is_accepted = True
            self._ledger.num_own_accepted_tokens += self.num_outstanding_tokens

    def progress(self, num_tokens: int) -> None:
        """Note that `num_tokens` new tokens came, which also means that prefill is done."""
        num_decoded = min(num_tokens, self._num_decode_tokens)
        self._subtract(self._num_prefill_tokens + num_decoded)
        self._num_prefill_tokens = 0
        self._num_decode_tokens -= num_decoded

    def release(self) -> None:
        """Give back what is left. Idempotent."""
        if not self._is_released:
            self._is_released = True
            self._subtract(self.num_outstanding_tokens)
            self._num_prefill_tokens = self._num_decode_tokens = 0

    def _subtract(self, num_tokens: int) -> None:
        self._ledger.num_own_tokens -= num_tokens
        if self._is_accepted:
            self._ledger.num_own_accepted_tokens -= num_tokens

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Router:
    """Asks its policy for a group and keeps the accounts the policy reads."""

    def __init__(self, policy: RoutingPolicy) -> None:
        self._policy = policy
        self._ledgers: dict[str, _Ledger] = {}
        self._num_picks = 0

    def reserve(self, groups: Sequence[str], request: RoutingRequest) -> Reservation:
        """Pick one of `groups` (ids, not empty) and count `request` on it; the only way to get a group."""
        ledgers = sorted((self._ledger(group_id) for group_id in groups), key=lambda ledger: ledger.last_pick)
        picked = self._ledger(self._policy.pick([ledger.view() for ledger in ledgers], request))
        self._num_picks += 1
        picked.last_pick = self._num_picks
        return Reservation(picked, request)

    def report(self, group_id: str, load: EngineLoad) -> None:
        """Take a group's own report; it holds every reservation accepted so far and no other of ours."""
        ledger = self._ledger(group_id)
        # Our estimate of our own share may exceed the group's count (a prefix hit it knows of, tokens under way to
        # us): then others count as nothing, never as less than nothing.
        ledger.num_other_tokens = max(0, load.num_outstanding_tokens - ledger.num_own_accepted_tokens)
        ledger.num_waiting = load.num_waiting
        ledger.num_running = load.num_running

    def forget(self, group_id: str) -> None:
        """Drop what is known of a group; open reservations on it may still be released."""
        self._ledgers.pop(group_id, None)

    def view(self, group_id: str) -> GroupView:
        """Return one group as the policy would see it now; an unknown group has nothing to do."""
        ledger = self._ledgers.get(group_id)
        return ledger.view() if ledger is not None else GroupView(group_id)

    def _ledger(self, group_id: str) -> _Ledger:
        ledger = self._ledgers.get(group_id)
        if ledger is None:
            ledger = self._ledgers[group_id] = _Ledger(group_id)
        return ledger
