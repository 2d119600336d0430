"""Gateways and groups of the release before know no timings: red if either end would then misread an event."""

import msgspec

from core.errors import ErrorInfo
from deployments.token_channel.messages import PROTOCOL_VERSION, Events
from engine.request import TokenEvent
from engine.request_timings import RequestTimings, StayTimes
from parallel.plan import TokenLogprobs

TIMINGS = RequestTimings([StayTimes(0.5, 0.25, 0.125, 2.0, 7, 4), StayTimes(1.0)])
EVENT = TokenEvent("r1", [5], "length", num_cached_tokens=3, timings=TIMINGS)


class FormerEvent(msgspec.Struct, frozen=True, array_like=True):
    """A TokenEvent as version 2 of the token channel began with."""

    request_id: str
    token_ids: list[int]
    finish_reason: str | None = None
    error: ErrorInfo | None = None
    logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0
    stop_token_id: int | None = None


class FormerEvents(msgspec.Struct, frozen=True, tag="Events"):
    events: list[FormerEvent]
    token_ids: list[int] = []
    request_ids: list[str] | None = None


def test_timings_cross_the_channel_unchanged():
    (event,) = msgspec.msgpack.decode(msgspec.msgpack.encode(Events([EVENT])), type=Events).events
    assert event == EVENT


def test_a_former_gateway_reads_events_with_timings():
    (event,) = msgspec.msgpack.decode(msgspec.msgpack.encode(Events([EVENT])), type=FormerEvents).events
    assert event == FormerEvent("r1", [5], "length", num_cached_tokens=3)


def test_the_events_of_a_former_group_have_no_timings():
    former = FormerEvents([FormerEvent("r1", [5], "length", num_cached_tokens=3)])
    (event,) = msgspec.msgpack.decode(msgspec.msgpack.encode(former), type=Events).events
    assert event == TokenEvent("r1", [5], "length", num_cached_tokens=3)


def test_so_the_version_of_the_vocabulary_is_still_the_same():
    assert PROTOCOL_VERSION == 2
