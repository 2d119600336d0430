"""A gateway of the simulated service: one copy of the router, and what it has reserved."""

from collections.abc import Sequence

from cluster.routing.base import RoutingRequest
from cluster.routing.router import Reservation, Router
from engine.prefix_feed import PrefixNews
from engine.request import EngineLoad, Placement


class Gateway:
    """Reserves before it sends, as the live gateway does, and tells its router what the live one would hear."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._reservations: dict[int, Reservation] = {}

    def reserve(self, index: int, group_ids: Sequence[str], request: RoutingRequest) -> str:
        """Return the group the router picked for the request; it is counted there from now on. Raises Overloaded."""
        reservation = self._router.reserve(group_ids, request)
        self._reservations[index] = reservation
        return reservation.group_id

    def accepted(self, index: int) -> None:
        """Take note that the group has the request: what it reports from now on counts it."""
        self._reservations[index].accepted()

    def first_token(self, index: int) -> None:
        """Take note that the request's prompt is computed."""
        self._reservations[index].progress(1)

    def finished(self, index: int, num_tokens: int) -> None:
        """Take note that the request ended with its `num_tokens`-th token on this group.

        A live gateway hears of every token; between the first and the last, reports say the same to this one.
        """
        reservation = self._reservations.pop(index)
        reservation.progress(num_tokens - 1)
        reservation.release()

    def lost(self, index: int, num_tokens: int) -> None:
        """Take note that the group died when it had made `num_tokens` for the request."""
        reservation = self._reservations.pop(index)
        reservation.progress(num_tokens - 1)
        reservation.failed()

    def report(self, group_id: str, load: EngineLoad, news: PrefixNews | None) -> None:
        """Take what a group says of itself."""
        self._router.report(group_id, load)
        if news is not None:
            is_understood = self._router.note_prefixes(group_id, news)
            assert is_understood, "the simulated connection loses nothing"

    def placed_elsewhere(self, group_id: str, placement: Placement) -> None:
        """Take note that another gateway's request was accepted by a group."""
        self._router.note_placed(group_id, placement)

    def forget(self, group_id: str) -> None:
        """Drop what is known of a group that is gone."""
        self._router.forget(group_id)
