"""One group's account: what it last reported, and what was placed there since.

    what a router sees = the group's last report + what other routers have placed there since
                       + own reservations that the report does not hold yet

A report travels on the same ordered connection as the group's acceptances, so it holds exactly the reservations that
were accepted before it arrived, and replaces what they counted for. Younger ones count for themselves, exactly, from
the moment of the choice: that is what keeps a burst from landing on one group.

What a report holds stays as reported until the next one, a tenth of a second later, except that a request which has
ended is gone.
"""

from typing import NamedTuple, Protocol

from cluster.routing.base import GroupView
from cluster.routing.breaker import Breaker
from core.clock import Clock
from engine.request import EngineLoad, Placement


class Work(NamedTuple):
    """What requests ask of a group, in the terms of a GroupView."""

    num_queued_tokens: int = 0
    num_outstanding_tokens: int = 0
    num_kv_tokens: int = 0
    num_waiting: int = 0
    num_running: int = 0


NO_WORK = Work()


class Entry(Protocol):
    """A reservation as its ledger knows it."""

    @property
    def is_accepted(self) -> bool:
        """Whether the group has the request, so that its next report holds it."""
        ...

    @property
    def work(self) -> Work:
        """What it counts for at present."""
        ...


class Ledger:
    """What a router knows of one group. Outlives the router's memory of it while reservations on it are open."""

    def __init__(self, group_id: str, clock: Clock, warm_from_s: float) -> None:
        """`warm_from_s`: the time from which the group takes as much work as any."""
        self.view = GroupView(group_id)
        self.breaker = Breaker()
        self.clock = clock
        self.warm_from_s = warm_from_s
        self.reported_s = clock.now_s()
        self.has_learned = False
        """Whether the step costs in the view are the group's own."""
        self._young: dict[Entry, None] = {}

    @property
    def group_id(self) -> str:
        """The group it is about."""
        return self.view.group_id

    def report(self, load: EngineLoad) -> None:
        """Take the group's own report: it holds every reservation accepted so far, and no other of ours."""
        self.reported_s = self.clock.now_s()
        self._young = {entry: None for entry in self._young if not entry.is_accepted}
        view = self.view
        view.num_queued_tokens = load.num_uncached_tokens
        view.num_outstanding_tokens = load.num_outstanding_tokens
        view.num_kv_tokens = load.num_kv_tokens
        view.num_waiting = load.num_waiting
        view.num_running = load.num_running
        self._add(self._own())
        view.max_kv_tokens = load.max_kv_tokens
        if load.max_step_tokens:
            view.max_step_tokens = load.max_step_tokens
        if load.step_costs is not None:
            view.step_costs = load.step_costs
            self.has_learned = True

    def note_placed(self, placement: Placement) -> None:
        """Count a request that the group has accepted from another router; its next report holds it."""
        view = self.view
        view.num_queued_tokens += placement.num_uncached_tokens
        view.num_outstanding_tokens += placement.num_uncached_tokens + placement.max_tokens
        view.num_waiting += 1

    def open(self, entry: Entry) -> None:
        """Count a new reservation."""
        self._young[entry] = None
        self._add(entry.work)

    def change(self, entry: Entry, work: Work) -> None:
        """Have a reservation that no report holds count for `work` instead of what it counts for at present."""
        if entry in self._young:
            self._subtract(entry.work)
            self._add(work)

    def close(self, entry: Entry) -> None:
        """Count a reservation no longer."""
        if entry in self._young:
            del self._young[entry]
            self._subtract(entry.work)
        else:
            self._subtract_reported(entry.work)

    def _own(self) -> Work:
        """Return what all reservations count for that no report holds."""
        return Work(*map(sum, zip(*(entry.work for entry in self._young), strict=True))) if self._young else NO_WORK

    def _add(self, work: Work) -> None:
        view = self.view
        view.num_queued_tokens += work.num_queued_tokens
        view.num_outstanding_tokens += work.num_outstanding_tokens
        view.num_kv_tokens += work.num_kv_tokens
        view.num_waiting += work.num_waiting
        view.num_running += work.num_running

    def _subtract(self, work: Work) -> None:
        view = self.view
        view.num_queued_tokens -= work.num_queued_tokens
        view.num_outstanding_tokens -= work.num_outstanding_tokens
        view.num_kv_tokens -= work.num_kv_tokens
        view.num_waiting -= work.num_waiting
        view.num_running -= work.num_running

    def _subtract_reported(self, work: Work) -> None:
        """Take `work` from what was reported, of which our count may differ (a prefix hit that only the group knew)."""
        view, own = self.view, self._own()
        reported = Work(
            view.num_queued_tokens - own.num_queued_tokens,
            view.num_outstanding_tokens - own.num_outstanding_tokens,
            view.num_kv_tokens - own.num_kv_tokens,
            view.num_waiting - own.num_waiting,
            view.num_running - own.num_running,
        )
        self._subtract(Work(*map(min, work, reported)))
