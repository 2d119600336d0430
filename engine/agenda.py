"""At which decode step something happens to a row, known in advance.

Every decoding row has a part in every decode step, with one token. So the step that needs a further block, the step
whose commit fills one, and the step that gives the last token can be told when a row begins to decode, and no step has
to ask every row. Steps are counted in ticks.
"""

from collections import defaultdict
from collections.abc import Iterable

from engine.live_request import RowStay


class Agenda:
    """What is due, by tick: one thing of a stay at a time, at most a block's length ahead. It may be over by then."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._growing: defaultdict[int, list[RowStay]] = defaultdict(list)
        self._filling: defaultdict[int, list[RowStay]] = defaultdict(list)
        self._ending: defaultdict[int, list[RowStay]] = defaultdict(list)

    def note(self, stay: RowStay) -> None:
        """Note what is next for a stay that begins to decode, or that has just been given a block."""
        last_position = stay.live.max_length - 2  # that computes a token: the last one itself is never computed
        block_end = len(stay.blocks) * self._block_size
        if last_position < block_end:
            self._ending[last_position - stay.position_of_tick_0].append(stay)
        else:
            tick = block_end - stay.position_of_tick_0
            self._growing[tick].append(stay)
            self._filling[tick - 1].append(stay)

    def growing(self, tick: int) -> list[RowStay]:
        """Return the stays that need a block to be scheduled; ask once."""
        return _still_there(self._growing.pop(tick, ()))

    def ending(self, tick: int) -> list[RowStay]:
        """Return the stays that get their last token; ask once, after those that grow were noted anew."""
        return _still_there(self._ending.pop(tick, ()))

    def filling(self, tick: int) -> list[RowStay]:
        """Return the stays that have filled a block; ask once, when the step is committed."""
        return _still_there(self._filling.pop(tick, ()))


def _still_there(stays: Iterable[RowStay]) -> list[RowStay]:
    return [stay for stay in stays if not stay.is_over]
