"""The memory of each rank's place as it was when the place was first taken."""

import msgspec

from parallel.rank.messages import Joined


class FirstMemory:
    """Has a successor's memory plan be the same as that of the rank before it."""

    def __init__(self) -> None:
        self._first: dict[int, Joined] = {}

    def of(self, joined: Joined) -> Joined:
        """Return what a rank found, but the memory as its place had it at first.

        What a dead rank held is free again, and what the living hold counts as free.
        """
        first = self._first.setdefault(joined.rank, joined)
        if joined.node != first.node:
            return joined
        return msgspec.structs.replace(
            joined, total_memory_bytes=first.total_memory_bytes, free_memory_bytes=first.free_memory_bytes
        )
