"""From token events to text deltas, for one request that may ask for several choices. Knows no wire format."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from core.clock import MonotonicClock
from core.errors import ReplicaFailed
from deployments.groups.trail import StreamTrail
from deployments.groups.unbroken import UnbrokenStreams
from deployments.live.latencies import RequestLatencies
from deployments.metrics.store import Distribution
from engine.request import GenerationRequest, TokenEvent
from engine.request_timings import RequestTimings
from engine.text import TextStream
from parallel.plan import TokenLogprobs

ChoiceEnd = Literal["stop", "length"]


class ChoiceToken(NamedTuple):
    """One generated token, for callers who asked for logprobs."""

    token_id: int
    logprobs: TokenLogprobs
    text_offset: int
    """Characters of the choice before it."""


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What one event of the group adds to one choice."""

    choice: int
    """Its index."""
    text: str
    tokens: Sequence[ChoiceToken]
    """Empty unless logprobs were asked for."""
    finish_reason: ChoiceEnd | None


Emit = Callable[[Delta], Awaitable[None]]
"""Passes a delta on; may be a plain function that returns what `send` returned, for every token comes through here."""


class Choice:
    """One completion on its way. `run` it once; the counts are final when it has returned."""

    def __init__(self, index: int, model: str, request: GenerationRequest, text: TextStream) -> None:
        self.index = index
        self.finish_reason: ChoiceEnd | None = None
        self.num_cached_tokens = 0
        self.first_token_at_s: float | None = None
        self.trail = StreamTrail(MonotonicClock())
        """What became of its stream."""
        self.token_gaps: Distribution | None = None
        """Takes the time between each two tokens, if anybody measures it."""
        self.latencies: RequestLatencies | None = None
        """Takes it as well, and the time to the first token, for the live page."""
        self.timings: RequestTimings | None = None
        """What the latest group told of its part of the request; of its beginning only, if it was left early."""
        self._last_event_at_s = 0.0
        self._model = model
        self._request = request
        self._text = text
        self._num_stop_tokens = 0

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of its prompt."""
        return self._request.num_prompt_tokens

    @property
    def max_tokens(self) -> int:
        """Most tokens that are generated."""
        return self._request.sampling.max_tokens

    @property
    def num_tokens(self) -> int:
        """Generated tokens, with the invisible one that ended it, without any after a stop string."""
        return self._text.num_tokens + self._num_stop_tokens

    async def run(self, streams: UnbrokenStreams, emit: Emit) -> None:
        """Have groups generate; `emit` every visible change. Leaving early, or a stop string, cancels at the group.

        Raises what the request was refused with, or what ended it before its time.
        """
        async with await streams.open(self._model, self._request, self.trail) as stream:
            async for event in stream:
                delta = self._take(event)
                if delta is not None:
                    await emit(delta)
                if self.finish_reason is not None:
                    return
        raise ReplicaFailed("the replica group ended the stream without saying why; send the request again")

    def _take(self, event: TokenEvent) -> Delta | None:
        """Return what became visible, or None."""
        now_s = time.monotonic()
        if self.first_token_at_s is None:
            self.first_token_at_s = now_s
            self.num_cached_tokens = event.num_cached_tokens
            self.timings = event.timings
            if self.latencies is not None:
                self.latencies.note_first(now_s)
        elif num_tokens := len(event.token_ids):
            self._note_gap((now_s - self._last_event_at_s) / num_tokens, num_tokens)
        self._last_event_at_s = now_s
        if event.logprobs is None and event.finish_reason is None:
            return self._take_tokens(event.token_ids)
        tokens: Sequence[ChoiceToken] = ()
        if event.logprobs:
            text, is_stopped, tokens = self._push_with_logprobs(event.token_ids, event.logprobs)
        else:
            text, is_stopped = self._text.push(event.token_ids)
        if is_stopped:
            self.finish_reason = "stop"
        elif event.finish_reason is not None:
            text += self._finish(event)
        if text or tokens or self.finish_reason is not None:
            return Delta(self.index, text, tokens, self.finish_reason)
        return None

    def _note_gap(self, seconds: float, num_tokens: int) -> None:
        if self.token_gaps is not None:
            self.token_gaps.observe(seconds, num_tokens)
        if self.latencies is not None:
            self.latencies.note_gap(seconds, num_tokens)

    def _take_tokens(self, token_ids: Sequence[int]) -> Delta | None:
        text, is_stopped = self._text.push(token_ids)
        if is_stopped:
            self.finish_reason = "stop"
        return Delta(self.index, text, (), self.finish_reason) if text or is_stopped else None

    def _finish(self, event: TokenEvent) -> str:
        if event.finish_reason == "cancelled":
            raise ReplicaFailed("the replica group cancelled the request; send it again")
        self.timings = event.timings or self.timings
        if event.stop_token_id is not None:
            self._num_stop_tokens = 1
        text = self._text.finish()
        is_stop = event.finish_reason == "stop" or self._text.stop_string is not None
        self.finish_reason = "stop" if is_stop else "length"
        return text

    def _push_with_logprobs(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> tuple[str, bool, list[ChoiceToken]]:
        parts: list[str] = []
        tokens: list[ChoiceToken] = []
        is_stopped = False
        for token_id, token_logprobs in zip(token_ids, logprobs, strict=True):
            tokens.append(ChoiceToken(token_id, token_logprobs, self._text.num_characters))
            text, is_stopped = self._text.push([token_id])
            parts.append(text)
            if is_stopped:
                break
        return "".join(parts), is_stopped, tokens


async def run_choices(choices: Sequence[Choice], streams: UnbrokenStreams, emit: Emit) -> None:
    """Run all at the same time; the first failure cancels the others and is raised."""
    if len(choices) == 1:
        await choices[0].run(streams, emit)
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            for choice in choices:
                tasks.create_task(choice.run(streams, emit))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
