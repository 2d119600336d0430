"""The tokens of the latest decode steps, written for all rows at once and read for one row at a time."""

import numpy as np
from numpy.typing import NDArray


class TokenLog:
    """A ring of steps by rows. What a row was given must be read before as many steps as the ring holds have passed.

    Decode steps are counted: every step that is committed is one `tick`. So a busy step costs one write, however many
    requests are running, and each of them takes its tokens over when it needs them: once a block, and when it leaves.
    """

    def __init__(self, num_steps: int, num_rows: int) -> None:
        self._tokens = np.zeros((num_steps, num_rows), np.dtype("<i4"))
        self.tick = 0
        """The latest committed step."""

    def write(self, rows: NDArray[np.int64], token_ids: NDArray[np.int32]) -> None:
        """Commit a step that gave each of `rows` a token."""
        self.tick += 1
        self._tokens[self.tick % len(self._tokens)][rows] = token_ids

    def read(self, row: int, after_tick: int) -> bytes:
        """Return what the row was given after that step, packed. The row must have had a part in every step since."""
        count, size = self.tick - after_tick, len(self._tokens)
        assert 0 <= count <= size, "the row's tokens were overwritten before they were read"
        first = (after_tick + 1) % size
        stop = first + count
        packed = self._tokens[first:stop, row].tobytes()
        return packed if stop <= size else packed + self._tokens[: stop - size, row].tobytes()
