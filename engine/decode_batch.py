"""The rows that decode together, as long as they are the same."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.live_request import RowStay
from engine.request import EventSink
from parallel.plan import pack_integers


class Addressee(NamedTuple):
    """One consumer of a batch's tokens."""

    sink: EventSink
    request_ids: list[str]
    places: list[int] | None
    """Which of the batch's tokens are for it, in the order of `request_ids`; None: all."""

    def take(self, token_ids: list[int]) -> list[int]:
        """Return its tokens out of the batch's."""
        return token_ids if self.places is None else [token_ids[place] for place in self.places]


class DecodeBatch:
    """Everything about some decoding stays that is the same at every step. Made anew when one comes or goes."""

    def __init__(self, stays: Sequence[RowStay]) -> None:
        self.stays = tuple(stays)
        self.rows = np.array([stay.row for stay in stays], np.int64)
        self.packed_rows = pack_integers(self.rows)
        self.addressees = addressees_of(stays)

    def __len__(self) -> int:
        return len(self.stays)


class DecodingStays:
    """The stays that have a part in the next decode step."""

    def __init__(self) -> None:
        self._stays: list[RowStay] = []
        self._batch: DecodeBatch | None = NOBODY

    def add(self, stay: RowStay) -> None:
        """Have one more take part."""
        self._stays.append(stay)
        self._batch = None

    def discard(self, stay: RowStay) -> None:
        """Have it take no part any more, if it did."""
        if stay in self._stays:
            self._stays.remove(stay)
            self._batch = None

    def batch(self) -> DecodeBatch:
        """Return them; the same object as long as they are the same."""
        if self._batch is None:
            self._batch = DecodeBatch(self._stays)
        return self._batch


def addressees_of(stays: Sequence[RowStay]) -> list[Addressee]:
    """Return who gets the tokens of these stays."""
    sinks = [stay.live.sink for stay in stays]
    request_ids = [stay.live.request_id for stay in stays]
    if sinks and sinks.count(sinks[0]) == len(sinks):
        return [Addressee(sinks[0], request_ids, None)]
    places: dict[EventSink, list[int]] = {}
    for place, sink in enumerate(sinks):
        places.setdefault(sink, []).append(place)
    return [Addressee(sink, [request_ids[place] for place in mine], mine) for sink, mine in places.items()]


NOBODY = DecodeBatch(())
"""The batch of a plan without decodes."""
