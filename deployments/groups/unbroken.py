"""Streams that never break: each request is carried from group to group until it is done.

When a group dies or drains, the gateway still has the prompt and every token it was given. It submits both to another
group, which computes them anew and goes on at the next token; random numbers are a function of seed and position, so
what follows is what would have come. Nothing is retracted, repeated or skipped; the client sees a pause.

    streams = UnbrokenStreams(directory)
    async with await streams.open(model, request) as stream:
        async for event in stream:             # TokenEvents without errors; what ends the request otherwise is raised
            ...

Each attempt has a request id of its own, so that late events of an abandoned one reach nobody.
"""

import asyncio
import logging
from collections import defaultdict

import msgspec

from core.clock import Clock, MonotonicClock
from core.errors import (
    DeadlineExceeded,
    EaglerayError,
    ErrorInfo,
    Overloaded,
    ReplicaFailed,
    RequestError,
    RequestQuarantined,
)
from deployments.groups.directory import GroupDirectory, RoutedStream
from deployments.groups.group_search import ELSEWHERE, GroupSearch, Moments, StreamLimits, expiry
from deployments.groups.quarantine import Quarantine, Strikes
from deployments.groups.retry_budget import RetryBudget
from deployments.groups.stream_counts import StreamCounts
from deployments.groups.trail import Breakage, Search, StreamTrail
from engine.request import GenerationRequest, TokenEvent

logger = logging.getLogger(__name__)


class UnbrokenStreams:
    """Opens streams over a directory's groups, and holds what they share. Lives on one event loop."""

    def __init__(
        self, directory: GroupDirectory, limits: StreamLimits | None = None, clock: Clock | None = None
    ) -> None:
        self.clock = clock if clock is not None else MonotonicClock()
        self.limits = limits if limits is not None else StreamLimits()
        self.counts: defaultdict[str, StreamCounts] = defaultdict(StreamCounts)
        """By model."""
        self.search = GroupSearch(directory, self.limits, self.clock, self.counts)
        self.quarantine = Quarantine(self.clock)
        self.budget = RetryBudget(self.clock)
        self.docks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By model: the last attempts of suspects are made one at a time."""
        self.num_open = 0
        """Streams that were opened and not left."""

    @property
    def num_held(self) -> int:
        """Requests and streams that wait for a group now."""
        return self.search.num_held

    def close(self) -> None:
        """Have streams that break from now on, or wait for a group already, end at once. Idempotent."""
        self.search.close()

    async def open(self, model: str, request: GenerationRequest, trail: StreamTrail | None = None) -> "UnbrokenStream":
        """Return the stream once a group accepted the request; what becomes of it is written to `trail`.

        Raises ModelNotFound; RequestError or Overloaded as a group refused it; NotReady or ReplicaFailed if none could
        take it in time; RequestQuarantined if it is known to kill groups.
        """
        if self.quarantine.has(model, request):
            self.counts[model].num_quarantined += 1
            raise RequestQuarantined("replica groups died of this request; it is refused for ten minutes")
        moments = Moments(expiry(self.clock, request), self.clock.now_s())
        trail = trail or StreamTrail(self.clock)
        with trail.search() as search:
            attempt = await self.search.place_new(model, request, moments, search)
        return UnbrokenStream(self, model, request, moments, attempt, trail)


class UnbrokenStream:
    """The events of one request, whatever becomes of its groups. Use as an async context manager; one reader.

    Leaving early cancels the request. Iterating raises the EaglerayError that ends it, if one does.
    """

    def __init__(
        self,
        shared: UnbrokenStreams,
        model: str,
        request: GenerationRequest,
        moments: Moments,
        attempt: RoutedStream,
        trail: StreamTrail,
    ) -> None:
        self._shared = shared
        self._model = model
        self._request = request
        self._moments = moments
        self._attempt: RoutedStream | None = attempt
        self._trail = trail
        self._part = trail.begin_part(attempt)
        self._num_attempts = 1
        self._emitted: list[int] = []
        self._num_emitted_before = 0
        """When the attempt began."""
        self._strikes = Strikes()
        self._dock: asyncio.Lock | None = None
        """Held by a suspect until new tokens clear it."""

    @property
    def group_id(self) -> str | None:
        """The group that works on it now."""
        return None if self._attempt is None else self._attempt.group_id

    @property
    def _num_new_tokens(self) -> int:
        """That the attempt has brought."""
        return len(self._emitted) - self._num_emitted_before

    async def __aenter__(self) -> "UnbrokenStream":
        self._shared.num_open += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._shared.num_open -= 1
        await self._leave_group()

    def __aiter__(self) -> "UnbrokenStream":
        return self

    async def __anext__(self) -> TokenEvent:
        while self._attempt is not None:
            event = await anext(self._attempt.events)
            self._attempt.note(event)
            if event.timings is not None:
                self._part.note(event, self._shared.clock.now_s())
            if event.error is None:
                self._emitted += event.token_ids
                if self._dock is not None and self._strikes.is_cleared_by(self._num_new_tokens):
                    self._leave_dock()
                return event
            await self._carry_on(event.error.to_error())
            if self._attempt is None:
                # Everything had come but the word that it is the end.
                return TokenEvent(event.request_id, [], finish_reason="length")
        raise StopAsyncIteration

    async def _carry_on(self, failure: EaglerayError) -> None:
        """Have another group go on, unless nothing is left to generate. Raises what ends the request."""
        former, was_alone = self.group_id or "", self._dock is not None
        started_s = self._shared.clock.now_s()
        if self._num_new_tokens > 0:
            self._moments = self._moments._replace(waiting_since_s=started_s)
        self._part.error = failure.code
        await self._leave_group()
        if not isinstance(failure, ELSEWHERE):
            raise failure
        if isinstance(failure, ReplicaFailed):
            self._count_death(was_alone)
        if len(self._emitted) >= self._request.sampling.max_tokens:
            return
        breakage = Breakage(started_s, former, failure.code, len(self._emitted))
        await self._wait_for_turn()
        with self._trail.search(breakage) as search:
            self._attempt = await self._place(failure, former, search)
        self._part = self._trail.begin_part(self._attempt)
        self._note_resumed(failure, former, self._shared.clock.now_s() - started_s)

    def _count_death(self, was_alone: bool) -> None:
        """Hold the death of the group against the request. Raises RequestQuarantined if that was one too many."""
        self._strikes.died(self._num_new_tokens, was_alone=was_alone)
        if self._strikes.is_convicted:
            shared = self._shared
            if was_alone:  # else it may have died of another, and is welcome to be sent again
                shared.quarantine.add(self._model, self._request)
            shared.counts[self._model].num_quarantined += 1
            logger.warning("request quarantined", extra={"model": self._model, "num_attempts": self._num_attempts})
            raise RequestQuarantined(
                "replica groups kept dying while they worked on this request; "
                f"after {self._num_attempts} attempts it is given up"
            )

    async def _wait_for_turn(self) -> None:
        """Return when the retry budget allows, and no other suspect is being tried if this request is one."""
        shared = self._shared
        pause_s = shared.budget.take(shared.num_open)
        if pause_s > 0:
            await asyncio.sleep(min(pause_s, max(0.0, self._moments.expires_s - shared.clock.now_s())))
        if self._strikes.is_suspect:
            dock = shared.docks[self._model]
            try:
                async with asyncio.timeout(shared.limits.resume_wait_s):
                    await dock.acquire()
            except TimeoutError:
                return  # better in bad company than not at all
            self._dock = dock

    async def _place(self, failure: EaglerayError, former: str, search: Search) -> RoutedStream:
        self._num_attempts += 1
        self._num_emitted_before = len(self._emitted)
        request = msgspec.structs.replace(
            self._request,
            request_id=f"{self._request.request_id}~{self._num_attempts}",
            token_ids=self._request.token_ids + self._emitted,
        )
        try:
            return await self._shared.search.place_broken(self._model, request, self._moments, search, {former})
        except DeadlineExceeded:
            raise
        except (Overloaded, ReplicaFailed, RequestError) as refusal:
            self._shared.counts[self._model].num_given_up += 1
            raise _without_successor(failure, refusal) from refusal

    def _note_resumed(self, failure: EaglerayError, former: str, seconds: float) -> None:
        counts = self._shared.counts[self._model]
        if self._emitted:
            counts.num_resumes += 1
        else:
            counts.num_retries += 1
        counts.resume_s += seconds
        fields = {
            "from_group": former,
            "to_group": self.group_id,
            "cause": failure.code,
            "num_tokens": len(self._emitted),
            "seconds": round(seconds, 3),
        }
        logger.info("stream goes on in another group", extra=fields)

    async def _leave_group(self) -> None:
        self._leave_dock()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            self._part.end(self._shared.clock.now_s(), self._num_new_tokens)
            await attempt.__aexit__()

    def _leave_dock(self) -> None:
        if self._dock is not None:
            self._dock.release()
            self._dock = None


def _without_successor(failure: EaglerayError, refusal: EaglerayError) -> EaglerayError:
    """Return what the caller is told: why the stream broke, and why nobody went on."""
    message = f"{failure.message}; no other replica group went on with the request: {refusal.message}"
    return ErrorInfo(failure.code, message, refusal.retry_after_s).to_error()
