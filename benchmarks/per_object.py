"""The leader's step the plain way: a request is an object with lists, a token is a struct, a block table is rebuilt.

What one writes first, and what `benchmarks.host_path` compares the engine with. It keeps the engine's promises for
steady decode (block tables, prefix hashes, ends by length or stop token, one frame a step for the gateway) and no
others: its pipes are not authenticated, nobody may come, leave or die.
"""

import contextlib
import time
from collections.abc import Callable
from hashlib import blake2b
from multiprocessing.connection import Connection
from typing import NamedTuple

import msgspec
import numpy as np

PARTS = ("plan", "submit", "tell", "publish", "receive", "commit")


class RowTask(msgspec.Struct, array_like=True):
    """One row of a plan."""

    row: int
    position: int
    block_ids: list[int]


class RowAnswer(msgspec.Struct, array_like=True):
    """One row of a result."""

    row: int
    token_id: int


class Told(msgspec.Struct, array_like=True):
    """One token on its way to the gateway."""

    request_id: str
    token_ids: list[int]
    finish_reason: str | None = None


class PlainRequest:
    """A running request."""

    def __init__(self, row: int, num_prompt_tokens: int, block_size: int) -> None:
        self.request_id = f"chatcmpl-{row:032x}-0"
        self.row = row
        self.token_ids = [1] * num_prompt_tokens
        self.max_length = 1 << 30
        self.stop_ids = frozenset((2,))
        self.block_ids = list(range(-(-num_prompt_tokens // block_size)))
        self.parent_hash = b"root"


class Cost(NamedTuple):
    """Seconds of one step by part, in the order of PARTS."""

    plan_s: float
    submit_s: float
    tell_s: float
    publish_s: float
    receive_s: float
    commit_s: float


def play_plain_rank(leader: Connection, num_rows: int, step_s: float) -> None:
    """Answer every plan after `step_s`, until the pipe breaks."""
    answer = msgspec.msgpack.encode([RowAnswer(row, 5) for row in range(num_rows)])
    with contextlib.suppress(EOFError):
        while leader.recv_bytes():
            time.sleep(step_s)
            leader.send_bytes(answer)


def play_plain_gateway(leader: Connection) -> None:
    """Decode every frame, until the pipe breaks."""
    with contextlib.suppress(EOFError):
        while frame := leader.recv_bytes():
            msgspec.msgpack.decode(frame, type=list[Told])


class PerObjectLeader:
    """Steps over requests that never end, between a rank and a gateway at the ends of pipes."""

    def __init__(
        self,
        prompt_lengths: list[int],
        block_size: int,
        rank: Connection,
        gateway: Connection,
        timer: Callable[[], float] = time.thread_time,
    ) -> None:
        self._block_size = block_size
        self._rank = rank
        self._gateway = gateway
        self._timer = timer
        self._requests = [PlainRequest(row, length, block_size) for row, length in enumerate(prompt_lengths)]
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[RowAnswer])
        self._cached: dict[bytes, int] = {}
        self._told: list[Told] = []
        self._next_block = 0

    def step(self) -> Cost:
        """Do one step's work; return what it cost."""
        times = [self._timer()]
        tasks = [self._plan(request) for request in self._requests]
        times.append(self._timer())
        self._rank.send_bytes(self._encoder.encode(tasks))
        times.append(self._timer())
        self._gateway.send_bytes(self._encoder.encode(self._told))
        times.append(self._timer())
        for request in self._requests:
            self._publish(request)
        times.append(self._timer())
        answers = self._decoder.decode(self._rank.recv_bytes())
        times.append(self._timer())
        self._told = [self._commit(request, answer) for request, answer in zip(self._requests, answers, strict=True)]
        times.append(self._timer())
        return Cost(*np.diff(times).tolist())

    def _plan(self, request: PlainRequest) -> RowTask:
        if len(request.token_ids) > len(request.block_ids) * self._block_size:
            self._next_block += 1
            request.block_ids.append(self._next_block)
        return RowTask(request.row, len(request.token_ids) - 1, list(request.block_ids))

    def _commit(self, request: PlainRequest, answer: RowAnswer) -> Told:
        assert answer.row == request.row, "answers come in order"
        if answer.token_id in request.stop_ids:
            return Told(request.request_id, [], "stop")
        request.token_ids.append(answer.token_id)
        is_over = len(request.token_ids) >= request.max_length
        return Told(request.request_id, [answer.token_id], "length" if is_over else None)

    def _publish(self, request: PlainRequest) -> None:
        num_computed = len(request.token_ids) - 1
        if num_computed % self._block_size:
            return
        data = np.array(request.token_ids[num_computed - self._block_size : num_computed], "<i4").tobytes()
        request.parent_hash = blake2b(request.parent_hash + data, digest_size=16).digest()
        self._cached[request.parent_hash] = request.block_ids[num_computed // self._block_size - 1]
