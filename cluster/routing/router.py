"""Which replica group a request goes to: filter, look up, ask the policy, count.

Pure: no asyncio, no Ray, the clock is given, so a simulator runs the same object. Used by one thread.
"""

from collections.abc import Sequence

import msgspec

from cluster.routing.base import GroupView, RoutingPolicy, RoutingRequest
from cluster.routing.breaker import Breaker
from cluster.routing.decisions import Decisions
from cluster.routing.eligibility import EligibilityConfig, eligible
from cluster.routing.ledger import Ledger
from cluster.routing.output_lengths import OutputLengths
from cluster.routing.prefix_index import PrefixIndex
from cluster.routing.reservation import Reservation
from core.clock import Clock, MonotonicClock
from core.errors import Overloaded
from engine.prefix_feed import PrefixNews
from engine.prefix_keys import SPAN_TOKENS
from engine.request import EngineLoad, Placement


class Router:
    """Asks its policy for a group and keeps the accounts the policy reads."""

    def __init__(
        self,
        policy: RoutingPolicy,
        *,
        clock: Clock | None = None,
        eligibility: EligibilityConfig | None = None,
        index: PrefixIndex | None = None,
    ) -> None:
        self.decisions = Decisions()
        self._policy = policy
        self._clock = clock if clock is not None else MonotonicClock()
        self._eligibility = eligibility if eligibility is not None else EligibilityConfig()
        self._index = index if index is not None else PrefixIndex()
        self._lengths = OutputLengths()
        self._began_s = self._clock.now_s()
        self._ledgers: dict[str, Ledger] = {}  # least recently picked first

    def reserve(self, groups: Sequence[str], request: RoutingRequest) -> Reservation:
        """Pick one of `groups` (ids, not empty) and count `request` on it; the only way to get a group.

        Raises Overloaded, as the policy does.
        """
        now_s = self._clock.now_s()
        candidates = eligible(self._in_turn(groups), now_s, self._eligibility)
        _lend_step_costs(candidates)
        num_spans = self._look_up(candidates, request)
        if request.num_expected_tokens is None:
            num_expected = self._lengths.expect(request.model, request.max_tokens)
            request = request._replace(num_expected_tokens=num_expected)
        views = [ledger.view for ledger in candidates]
        try:
            group_id = self._policy.pick(views, request)
        except Overloaded:
            self.decisions.note_refused()
            raise
        ledger = self._ledgers[group_id] = self._ledgers.pop(group_id)  # now the most recently picked
        ledger.breaker.note_pick(now_s)
        self.decisions.note(ledger.view, views, request.num_tokens)
        expectation = self._index.expect(group_id, request.prefix_keys, num_spans.get(group_id, 0))
        return Reservation(ledger, request, ledger.view.num_cached_tokens, expectation, self._lengths)

    def report(self, group_id: str, load: EngineLoad) -> None:
        """Take a group's own report; it holds every reservation accepted so far and no other of ours."""
        self._ledger(group_id).report(load)

    def note_prefixes(self, group_id: str, news: PrefixNews) -> bool:
        """Take what a group says of its prefix cache; False if a snapshot is wanted because some news is missing."""
        return self._index.apply(group_id, news)

    def note_placed(self, group_id: str, placement: Placement) -> None:
        """Take what a group accepted from another router since its last report."""
        self._ledger(group_id).note_placed(placement)

    def renewed(self, group_id: str) -> None:
        """Take note that the group has begun anew: what broke requests there is gone."""
        self._ledger(group_id).breaker = Breaker()

    def forget(self, group_id: str) -> None:
        """Drop what is known of a group; open reservations on it may still be released."""
        self._ledgers.pop(group_id, None)
        self._index.forget(group_id)

    def view(self, group_id: str) -> GroupView:
        """Return a copy of one group as the policy would see it now; an unknown group has nothing to do."""
        ledger = self._ledgers.get(group_id)
        return msgspec.structs.replace(ledger.view) if ledger is not None else GroupView(group_id)

    def _ledger(self, group_id: str) -> Ledger:
        ledger = self._ledgers.get(group_id)
        if ledger is None:
            ledger = self._ledgers[group_id] = Ledger(group_id, self._clock, self._warm_from_s())
        return ledger

    def _warm_from_s(self) -> float:
        """Return when a group found now will be warm. Groups found when the router has just begun were there before."""
        now_s, slow_start_s = self._clock.now_s(), self._eligibility.slow_start_s
        return now_s + slow_start_s if now_s - self._began_s > slow_start_s else now_s

    def _in_turn(self, groups: Sequence[str]) -> list[Ledger]:
        """Return the ledgers of `groups`, least recently picked first."""
        for group_id in [group_id for group_id in groups if group_id not in self._ledgers]:
            self._ledger(group_id)
        wanted = set(groups)
        return [ledger for group_id, ledger in self._ledgers.items() if group_id in wanted]

    def _look_up(self, candidates: Sequence[Ledger], request: RoutingRequest) -> dict[str, int]:
        """Write into each candidate's view what it has cached of the prompt; return the same in spans."""
        for ledger in candidates:
            ledger.view.num_cached_tokens = 0
        num_spans = self._index.find(request.prefix_keys)
        most_tokens = max(0, request.num_tokens - 1)  # an engine computes the last token in any case
        for group_id, num_found in num_spans.items():
            if group_id in self._ledgers:
                self._ledgers[group_id].view.num_cached_tokens = min(num_found * SPAN_TOKENS, most_tokens)
        return num_spans


def _lend_step_costs(ledgers: Sequence[Ledger]) -> None:
    """Have groups that have not learned what their steps cost yet count as alike to one that has."""
    taught = [ledger for ledger in ledgers if ledger.has_learned]
    if not taught or len(taught) == len(ledgers):
        return
    for ledger in ledgers:
        if not ledger.has_learned:
            ledger.view.step_costs = taught[0].view.step_costs
