"""Tells each gateway what its group has just accepted from the others, long before the next report would.

Without it all gateways send a burst to the group that looked idle in the last report. Nothing is exchanged between the
gateways themselves: the group knows all of them.
"""

import asyncio
from collections.abc import Collection

import msgspec

from core.frames import pack
from deployments.token_channel.messages import Placed
from deployments.token_channel.session import GatewaySession
from engine.request import Placement

GOSSIP_PERIOD_S = 0.003
"""How long placements are gathered for one frame."""


class PlacementGossip:
    """Lives on one event loop. `sessions` is read whenever something is told, and never changed here."""

    def __init__(self, sessions: Collection[GatewaySession]) -> None:
        self._sessions = sessions
        self._placed: list[tuple[GatewaySession, Placement]] = []
        self._timer: asyncio.TimerHandle | None = None

    def note(self, session: GatewaySession, placement: Placement) -> None:
        """Have all gateways but that one hear of the placement within milliseconds, unless a report is faster."""
        if len(self._sessions) < 2:
            return
        self._placed.append((session, placement))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GOSSIP_PERIOD_S, self._tell)

    def drop(self) -> None:
        """Forget what was not told yet: a report that counts it went to every gateway."""
        self._placed.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        placed = self._placed.copy()
        self.drop()
        origins = {session for session, _ in placed}
        frame = _frame([placement for _, placement in placed])
        for session in list(self._sessions):
            if session not in origins:
                session.send_packed(frame)
            elif len(origins) > 1:
                session.send_packed(_frame([placement for origin, placement in placed if origin is not session]))


def _frame(placements: list[Placement]) -> bytes:
    return pack(msgspec.msgpack.encode(Placed(placements)))
