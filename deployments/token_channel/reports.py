"""What a group tells every gateway alike: how busy it is, and what its prefix cache holds."""

from collections.abc import Callable, Collection

import msgspec

from cluster.submit_target import SubmitTarget
from core.frames import pack
from deployments.token_channel.messages import Load
from deployments.token_channel.session import GatewaySession
from engine.prefix_feed import PrefixFeed, PrefixNews
from engine.request import EngineLoad

IDLE_PERIODS = 10
"""An unchanged idle report goes out once in that many periods; gateways take it as a sign of life."""
SNAPSHOT_PAUSE_S = 0.5
"""Between two snapshots, which may cost the leader milliseconds: gateways that want one meanwhile get the same."""

_NO_ENGINE = EngineLoad(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""What a group reports while it has no engine: a sign of life. Gateways see from its announced state not to use it."""


class GroupReports:
    """Sends Load frames, to sessions that are welcome only.

    Prefix news goes to all of them alike, in one numbered series; who joins, or has missed some, waits for a snapshot,
    from which it goes on with the others.
    """

    def __init__(
        self, target: SubmitTarget, prefix_feed: Callable[[], PrefixFeed | None], now_s: Callable[[], float]
    ) -> None:
        self._target = target
        self._find_feed = prefix_feed
        self._now_s = now_s
        self._feed: PrefixFeed | None = None
        self._snapshot_due_s = now_s()
        self._last_load: EngineLoad | None = None
        self._num_reports = 0
        self._num_quiet_periods = 0

    def send(self, sessions: Collection[GatewaySession]) -> bool:
        """Send a report if there is work, a change, or nothing was said for a second; return whether."""
        load, news = self._load(), self._take_news(sessions)
        self._num_quiet_periods += 1
        is_busy = load.num_running > 0 or load.num_waiting > 0
        is_due = is_busy or load != self._last_load or self._num_quiet_periods >= IDLE_PERIODS
        waiting = [session for session in sessions if session.wants_prefixes]
        snapshot = self._snapshot() if waiting else None
        if not is_due and news is None and snapshot is None:
            return False
        self._num_quiet_periods = 0
        self._last_load = load
        self._send_to(waiting, load, snapshot)
        self._send_to([session for session in sessions if session not in waiting], load, news)
        return True

    def send_first(self, session: GatewaySession) -> None:
        """Send a report to a gateway that has just come."""
        self._take_feed([session])
        self._send_to([session], self._load(), self._snapshot())

    def _send_to(self, sessions: Collection[GatewaySession], load: EngineLoad, news: PrefixNews | None) -> None:
        if not sessions:
            return
        self._num_reports += 1
        frame = pack(msgspec.msgpack.encode(Load(self._num_reports, load, news)))
        for session in sessions:
            if news is not None and news.is_snapshot:
                session.wants_prefixes = False
            session.send_packed(frame)

    def _load(self) -> EngineLoad:
        load = self._target.load()
        return load if load is not None else _NO_ENGINE

    def _take_news(self, sessions: Collection[GatewaySession]) -> PrefixNews | None:
        self._take_feed(sessions)
        return None if self._feed is None else self._feed.take_news()

    def _take_feed(self, sessions: Collection[GatewaySession]) -> None:
        """Notice that the group has another engine, whose cache nobody knows yet."""
        feed = self._find_feed()
        if feed is not self._feed:
            self._feed = feed
            self._snapshot_due_s = self._now_s()
            for session in sessions:
                session.wants_prefixes = True

    def _snapshot(self) -> PrefixNews | None:
        """Return a snapshot, None if there was one lately."""
        now_s = self._now_s()
        if self._feed is None or now_s < self._snapshot_due_s:
            return None
        self._snapshot_due_s = now_s + SNAPSHOT_PAUSE_S
        return self._feed.snapshot()
