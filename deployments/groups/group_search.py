"""Finding a group for a request, with patience: what waits, what does not, and for how long."""

import math
import random
from collections import defaultdict
from collections.abc import Collection
from typing import NamedTuple

import msgspec
from pydantic import Field, NonNegativeInt

from core.clock import Clock
from core.config import Config
from core.errors import DeadlineExceeded, Draining, EaglerayError, ModelNotFound, NotReady, Overloaded, ReplicaFailed
from deployments.groups.directory import GroupDirectory, RoutedStream
from deployments.groups.holding import HoldingQueue
from deployments.groups.stream_counts import StreamCounts
from deployments.groups.trail import Search
from engine.request import GenerationRequest

ELSEWHERE = (ReplicaFailed, Draining, NotReady)
"""What one group refuses or ends a request with, and another need not."""

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
"""Between two rounds in which every open group refuses."""
_MAX_BROKEN_HELD = 1_000_000
"""Streams that have begun are bounded by the gateway's open requests, not here."""


class StreamLimits(Config):
    """What requests do, instead of failing, while no replica group can take them."""

    resume_wait_s: float = Field(default=10.0, ge=0, le=600)
    """How long a stream whose group is gone may wait for another group, or for the same one to heal. A new request
    waits as long if a group of its model is starting, restarting or being replaced."""
    max_held_requests: NonNegativeInt = 256
    """Most new requests that wait so at a time; more are refused. Streams that have begun are not counted."""


class Moments(NamedTuple):
    """Of one request, on the gateway's clock. A group is told how soon and how long ago: it has a clock of its own."""

    expires_s: float
    """When it ends whatever happens; infinity without a deadline."""
    waiting_since_s: float
    """When its caller asked, or the group broke that had given it tokens."""


class GroupSearch:
    """Submits requests through a directory, and waits where waiting helps. Lives on one event loop."""

    def __init__(
        self,
        directory: GroupDirectory,
        limits: StreamLimits,
        clock: Clock,
        counts: defaultdict[str, StreamCounts],
    ) -> None:
        self._directory = directory
        self._limits = limits
        self._clock = clock
        self._counts = counts
        self._random = random.Random()
        # Two queues, so that new requests cannot take the places of streams that have begun.
        self._new = HoldingQueue(limits.max_held_requests, limits.resume_wait_s)
        self._broken = HoldingQueue(_MAX_BROKEN_HELD, limits.resume_wait_s)
        self._is_closed = False
        directory.subscribe_openings(self._wake)

    @property
    def num_held(self) -> int:
        """Requests and streams that wait now."""
        return len(self._new) + len(self._broken)

    def close(self) -> None:
        """Wait for nothing any longer: the gateway ends. Idempotent."""
        self._is_closed = True
        self._wake()

    async def place_new(self, model: str, request: GenerationRequest, moments: Moments, search: Search) -> RoutedStream:
        """Return the stream of the first group that accepts a request nobody worked on yet.

        A full group is not waited for, a restarting one is. Raises what `GroupDirectory.submit` raises, or
        DeadlineExceeded.
        """
        return await self._place(model, request, moments, search, is_new=True)

    async def place_broken(
        self, model: str, request: GenerationRequest, moments: Moments, search: Search, left: Collection[str]
    ) -> RoutedStream:
        """Return the stream of the first group that goes on with a broken request; those it `left` are asked last.

        Everything is waited for. Raises the last refusal when the time is up, or DeadlineExceeded.
        """
        return await self._place(model, request, moments, search, is_new=False, last_resort=left)

    async def _place(
        self,
        model: str,
        request: GenerationRequest,
        moments: Moments,
        search: Search,
        is_new: bool,
        last_resort: Collection[str] = (),
    ) -> RoutedStream:
        patient_until_s = min(self._clock.now_s() + self._limits.resume_wait_s, moments.expires_s)
        pause_s = 0.0
        while True:
            current = self._stamped(request, moments)
            try:
                return await self._directory.submit(model, current, last_resort)
            except (Overloaded, ReplicaFailed, ModelNotFound) as refusal:
                patience_s = patient_until_s - self._clock.now_s()
                if self._is_closed or patience_s <= 0 or (is_new and not self._is_worth_waiting(model, refusal)):
                    raise
            if pause_s == 0:
                self._counts[model].num_held += 1
            pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            held_from_s = self._clock.now_s()
            try:
                await self._wait(model, is_new, patience_s, pause_s * (0.5 + self._random.random()))
            finally:
                search.hold(held_from_s, self._clock.now_s())

    def _stamped(self, request: GenerationRequest, moments: Moments) -> GenerationRequest:
        """Return the request as of now. Raises DeadlineExceeded."""
        now_s = self._clock.now_s()
        if moments.expires_s <= now_s:
            raise DeadlineExceeded("the request's deadline passed before a replica group finished it")
        left_s = None if request.deadline_s is None else moments.expires_s - now_s
        return msgspec.structs.replace(request, deadline_s=left_s, waited_s=now_s - moments.waiting_since_s)

    def _is_worth_waiting(self, model: str, refusal: EaglerayError) -> bool:
        has_room = len(self._new) < self._limits.max_held_requests
        return isinstance(refusal, ELSEWHERE) and has_room and self._directory.is_group_coming(model)

    async def _wait(self, model: str, is_new: bool, patience_s: float, pause_s: float) -> None:
        """Return when other groups than now are open, or it is time to ask those that are once more."""
        refusing = self._directory.open_groups(model)
        queue = self._new if is_new else self._broken
        try:
            await queue.hold(
                lambda: self._is_closed or self._directory.open_groups(model) != refusing,
                min(patience_s, pause_s) if refusing else patience_s,
            )
        except NotReady:
            return  # asking again is what tells the caller

    def _wake(self) -> None:
        self._broken.wake()
        self._new.wake()


def expiry(clock: Clock, request: GenerationRequest) -> float:
    """Return when the request ends whatever happens, on `clock`; infinity without a deadline."""
    return math.inf if request.deadline_s is None else clock.now_s() + request.deadline_s
