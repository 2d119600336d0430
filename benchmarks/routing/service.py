"""The simulated service: gateways in front of replicas, and requests from their arrival to their last token.

What a gateway knows is what the live one is told: reports of the replicas every `report_period_s` (load and prefix
news), its own reservations at once, and other gateways' placements `gossip_s` later. A period of 0 means that reports
are always fresh: the exact knowledge that a single router would like to have.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from benchmarks.routing.events import EventLoop, SimulatedClock
from benchmarks.routing.gateway import Gateway
from benchmarks.routing.replica import Attempt, Replica, ReplicaSpec
from benchmarks.routing.slo import Outcome
from benchmarks.routing.traces import BLOCK_TOKENS, Trace, spans
from cluster.routing.base import RoutingRequest
from cluster.routing.router import Router
from core.clock import Clock
from core.errors import Overloaded
from engine.prefix_feed import PrefixNews
from engine.prefix_keys import SPAN_TOKENS
from engine.request import Placement

_SPANS_PER_BLOCK = BLOCK_TOKENS // SPAN_TOKENS

MakeRouter = Callable[[Clock, random.Random], Router]
"""Makes one router copy from the simulated clock and a source of randomness."""


@dataclass(frozen=True)
class ServiceSpec:
    """How gateways learn of replicas, and what a request looks like to them."""

    make_router: MakeRouter
    replica: ReplicaSpec = field(default_factory=ReplicaSpec)
    num_gateways: int = 1
    report_period_s: float = 0.0
    gossip_s: float | None = None
    """None: gateways do not hear of each other's placements before the next report."""
    max_tokens: int = 4096
    """What callers allow; how much comes is not known before."""
    seed: int = 0


@dataclass(slots=True)
class _Member:
    """A replica in the service, and the state of its news."""

    replica: Replica
    epoch: int
    sequence: int = 0
    is_ready: bool = True


class Service:
    """Everything a request meets. Its own events drive it, and whoever starts, drains and removes replicas."""

    def __init__(self, spec: ServiceSpec, trace: Trace, loop: EventLoop) -> None:
        self._spec = spec
        self._loop = loop
        self._draws = random.Random(spec.seed)
        self._gateways = [
            Gateway(spec.make_router(SimulatedClock(loop), random.Random(spec.seed + 1 + index)))
            for index in range(spec.num_gateways)
        ]
        self._gateway_of: dict[int, Gateway] = {}
        self._members: dict[str, _Member] = {}
        self._num_started = 0
        self._held: deque[int] = deque()
        self._num_emitted: dict[int, int] = {}
        """Of requests that lost a replica after their first token."""
        self.outcomes = [Outcome(arrival) for arrival in trace.arrivals]
        self.num_open = len(self.outcomes)
        self.on_closed: Callable[[int, Outcome], None] = lambda index, outcome: None
        for index, arrival in enumerate(trace.arrivals):
            loop.at(arrival.at_s, self._arrive, index)

    @property
    def ready(self) -> list[str]:
        """Groups that take requests."""
        return [group_id for group_id, member in self._members.items() if member.is_ready]

    @property
    def num_held(self) -> int:
        """Requests that wait because no group is ready."""
        return len(self._held)

    def replica(self, group_id: str) -> Replica:
        """Return a replica that has not been taken away."""
        return self._members[group_id].replica

    def start(self, speed: float = 1.0) -> str:
        """Add a replica that takes requests at once; return its group id."""
        self._num_started += 1
        group_id = f"group-{self._num_started}"
        replica = Replica(self._spec.replica, self._loop, self, speed)
        self._members[group_id] = _Member(replica, epoch=self._num_started)
        if self._spec.report_period_s:
            # Replicas report in turn, not all at once.
            phase = self._draws.random() * self._spec.report_period_s
            self._loop.at(self._loop.now_s + phase, lambda _: self._report_and_repeat(group_id))
        while self._held:
            self._place(self._held.popleft())
        return group_id

    def drain(self, group_id: str) -> None:
        """Send nothing new to a group."""
        self._members[group_id].is_ready = False

    def take_back(self, group_id: str) -> None:
        """Use a draining group again."""
        self._members[group_id].is_ready = True

    def remove(self, group_id: str) -> None:
        """Take a group away, dead or idle; what is unfinished there goes on elsewhere, with the tokens it has."""
        member = self._members.pop(group_id)
        for gateway in self._gateways:
            gateway.forget(group_id)
        for attempt, num_emitted in member.replica.attempts():
            self._gateway_of[attempt.index].lost(attempt.index, num_emitted)
            self._num_emitted[attempt.index] = self._num_emitted.get(attempt.index, 0) + num_emitted
            self._place(attempt.index)

    def first_token(self, attempt: Attempt) -> None:
        """Record a prompt's end, unless the request has had a first token elsewhere."""
        outcome = self.outcomes[attempt.index]
        self._gateway_of[attempt.index].first_token(attempt.index)
        if outcome.first_s is None:
            outcome.first_s = self._loop.now_s
            outcome.num_cached_tokens = attempt.num_cached

    def finished(self, attempt: Attempt) -> None:
        """Record a request's end."""
        self.outcomes[attempt.index].finished_s = self._loop.now_s
        self._gateway_of[attempt.index].finished(attempt.index, attempt.num_output)
        self._close(attempt.index)

    def _arrive(self, index: int) -> None:
        self._gateway_of[index] = self._draws.choice(self._gateways)
        self._place(index)

    def _place(self, index: int) -> None:
        """Send a request, or what is left of it, to a group."""
        ready = self.ready
        if not ready:
            self._held.append(index)
            return
        if not self._spec.report_period_s:
            for group_id in ready:
                self._report(group_id)
        attempt, request = self._described(index)
        gateway = self._gateway_of[index]
        try:
            group_id = gateway.reserve(index, ready, request)
        except Overloaded:
            self.outcomes[index].has_failed = True
            self._close(index)
            return
        self.outcomes[index].num_attempts += 1
        num_uncached = self._members[group_id].replica.submit(attempt)
        gateway.accepted(index)
        self._gossip(gateway, group_id, Placement(num_uncached, attempt.num_prompt, attempt.max_tokens))

    def _described(self, index: int) -> tuple[Attempt, RoutingRequest]:
        """Return what a replica and what a router are told of a request."""
        arrival, num_emitted = self.outcomes[index].arrival, self._num_emitted.get(index, 0)
        num_tokens = arrival.num_prompt_tokens + num_emitted
        num_output = arrival.num_output_tokens - num_emitted
        max_tokens = max(self._spec.max_tokens, arrival.num_output_tokens) - num_emitted
        keys = tuple(spans(arrival.block_ids, _SPANS_PER_BLOCK))
        attempt = Attempt(index, num_tokens, num_output, max_tokens, arrival.block_ids)
        return attempt, RoutingRequest(num_tokens, max_tokens, keys)

    def _gossip(self, origin: Gateway, group_id: str, placement: Placement) -> None:
        if self._spec.gossip_s is None:
            return
        for gateway in self._gateways:
            if gateway is not origin:
                tell = partial(gateway.placed_elsewhere, group_id, placement)
                self._loop.at(self._loop.now_s + self._spec.gossip_s, lambda _, tell=tell: tell())

    def _report_and_repeat(self, group_id: str) -> None:
        if group_id in self._members:
            self._report(group_id)
            self._loop.at(self._loop.now_s + self._spec.report_period_s, lambda _: self._report_and_repeat(group_id))

    def _report(self, group_id: str) -> None:
        member = self._members[group_id]
        load, news = member.replica.load(), _news(member)
        for gateway in self._gateways:
            gateway.report(group_id, load, news)

    def _close(self, index: int) -> None:
        self.num_open -= 1
        self.on_closed(index, self.outcomes[index])


def _news(member: _Member) -> PrefixNews | None:
    """Return what changed in the replica's cache, in a router's keys; the first news is a snapshot."""
    changes = member.replica.take_prefix_changes()
    is_first = member.sequence == 0
    if not changes and not is_first:
        return None
    member.sequence += 1
    stored = [block_id for block_id, is_stored in changes.items() if is_stored]
    removed = [block_id for block_id, is_stored in changes.items() if not is_stored]
    return PrefixNews(
        member.epoch,
        member.sequence,
        is_first,
        list(spans(stored, _SPANS_PER_BLOCK)),
        [] if is_first else list(spans(removed, _SPANS_PER_BLOCK)),
    )
