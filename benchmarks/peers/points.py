"""One workload at one concurrency against a running server, by the project's one load generator."""

import asyncio
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.client import closed_loop
from benchmarks.metrics import Targets, figures, parse
from benchmarks.peers.meter import CpuMeter, Shares, memory_mib
from benchmarks.peers.server import RunningServer
from benchmarks.workloads import SHAPES, Planned, WordPrompts

WORKLOADS = ("A", "B", "C")
_REQUESTS = {"A": {1: 4, 8: 24, 32: 64}, "B": {1: 3, 8: 16, 32: 32}, "C": {1: 4, 8: 24, 32: 48}}
"""Two or three rounds of every stream: the ends of the run, where streams are missing, must not weigh much."""
_TARGETS = Targets(ttft_s=1.0, tpot_s=0.1)
_WARM_TOKENS = 4
_WARM_SECONDS = 60.0
_CUT_AFTER_BOXES = 2.0


class Point(NamedTuple):
    """A cell of the table."""

    workload: str
    concurrency: int

    @property
    def num_requests(self) -> int:
        """How many requests make the point."""
        return _REQUESTS[self.workload].get(self.concurrency, 2 * self.concurrency + 1)


@dataclass(frozen=True)
class Measured:
    """What one server did at one point in one round."""

    result: dict[str, Any]
    """As `benchmarks.metrics.figures` has it."""
    cores: Shares
    pss_mib: float
    """Of the server's process tree, right after the point."""
    num_planned: int

    @property
    def num_completed(self) -> int:
        """Requests that were answered to the end."""
        return self.result["num_completed"]

    @property
    def is_whole(self) -> bool:
        """Whether all planned requests were sent in the time there was, and all were answered."""
        return self.num_completed == self.num_planned

    @property
    def is_sound(self) -> bool:
        """Whether every request that was sent was answered; else the rates leave out work that was done."""
        return self.num_completed == self.result["num_requests"] > 0


class Load:
    """Plans and sends. The same points get the same prompts at every server; no round repeats another's."""

    def __init__(self, tokenizer: Path | None, time_box_s: float) -> None:
        """`tokenizer`: only words that are one token in it are sent. `time_box_s`: a point sends nothing more after it,
        and is cut after twice as long.
        """
        self._tokenizer = tokenizer
        self._time_box_s = time_box_s

    def measure(self, server: RunningServer, point: Point, turn: int) -> Measured:
        """Send one request to warm up (and to leave the shared prefix behind), then the point's; blocks."""
        warm, planned = self.plan(point, turn)
        asyncio.run(closed_loop(server.endpoint, [warm], 1, _WARM_SECONDS))
        cpu = CpuMeter(server.root)
        max_s, send_s = _CUT_AFTER_BOXES * self._time_box_s, self._time_box_s
        streams = asyncio.run(closed_loop(server.endpoint, planned, point.concurrency, max_s, send_s))
        cores = cpu.shares()
        result = figures([parse(stream) for stream in streams], _TARGETS)
        return Measured(result, cores, memory_mib(server.root), len(planned))

    def plan(self, point: Point, turn: int) -> tuple[Planned, list[Planned]]:
        """Return the request that warms up and those that are measured, of exact length in tokens."""
        shape = SHAPES[point.workload]
        seed = zlib.crc32(f"{point.workload} {point.concurrency} {turn}".encode())
        prompts = WordPrompts(seed, self._tokenizer)
        texts = [prompts.make(shape.num_prompt, shape.num_shared) for _ in range(point.num_requests + 1)]
        return Planned(texts[0], _WARM_TOKENS), [Planned(text, shape.num_output) for text in texts[1:]]
