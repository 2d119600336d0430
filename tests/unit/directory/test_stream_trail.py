"""What a stream leaves behind: red if a wait, a group or a resume is missing, or a phase lies outside of its part."""

import asyncio

import pytest

from deployments.groups.group_search import StreamLimits
from deployments.groups.trail import Part, StreamTrail
from engine.request import TokenEvent
from engine.request_timings import RequestTimings, StayTimes
from tests.support.fake_clock import FakeClock
from tests.support.fake_target import generation_request
from tests.support.fleets import Fleet


def part(ended_s, *stays, told=True):
    timings = RequestTimings([StayTimes(*stay) for stay in stays]) if stays else None
    return Part("g1", 10.0, ended_s, timings=timings, is_told=told)


def laid_out(part):
    return [(phase.name, phase.began_s, phase.ended_s) for phase in part.phases()]


def test_phases_are_laid_end_to_end_from_when_the_group_was_asked():
    assert laid_out(part(16.0, (1.0, 0.0, 2.0, 2.5, 8, 0))) == [
        ("queue", 10.0, 11.0),
        ("prefill", 11.0, 13.0),
        ("decode", 13.0, 15.5),
    ]


def test_a_preempted_request_queues_and_prefills_again():
    names = [name for name, _, _ in laid_out(part(20.0, (1.0, 0.0, 1.0, 1.0), (2.0, 0.0, 1.0, 1.0)))]
    assert names == ["queue", "prefill", "decode"] * 2


def test_a_group_whose_clock_runs_fast_has_no_phase_outlast_its_part():
    phases = laid_out(part(12.0, (1.0, 0.0, 2.0, 2.5)))
    assert phases == [("queue", 10.0, 11.0), ("prefill", 11.0, 12.0), ("decode", 12.0, 12.0)]


def test_a_part_that_the_gateway_left_has_decoded_until_then():
    phases = laid_out(part(15.0, (1.0, 0.0, 2.0, 0.001), told=False))
    assert phases == [("queue", 10.0, 11.0), ("prefill", 11.0, 13.0), ("decode", 13.0, 15.0)]


def test_a_group_that_told_nothing_has_no_phases():
    assert part(15.0).phases() == []


def timed(request_id, token_ids, finish_reason=None):
    timings = RequestTimings([StayTimes(0.5, 0.0, 0.5, 0.0, 4)])
    return TokenEvent(request_id, token_ids, finish_reason, timings=timings)


async def read(fleet, trail):
    async with await fleet.streams.open("tiny", generation_request("r1"), trail) as stream:
        return [token async for event in stream for token in event.token_ids]


def test_a_resumed_stream_leaves_two_searches_and_two_parts(run):
    async def main():
        clock = FakeClock(100.0)
        fleet = await Fleet("g1", "g2", clock=clock).start()
        trail = StreamTrail(clock)
        task = asyncio.create_task(read(fleet, trail))
        await fleet.settle()
        first = trail.parts[0].group_id
        second = {"g1": "g2", "g2": "g1"}[first]
        clock.advance(2.0)
        fleet.targets[first].step([timed(next(iter(fleet.targets[first].sinks)), [7])])
        await fleet.settle()
        clock.advance(1.0)
        await fleet.break_group(first)
        request_id = next(iter(fleet.targets[second].sinks))
        clock.advance(4.0)
        fleet.targets[second].step([timed(request_id, [8], "length")])
        assert await task == [7, 8]
        await fleet.close()

        one, two = trail.parts
        assert (one.group_id, one.began_s, one.first_token_s, one.ended_s) == (first, 100.0, 102.0, 103.0)
        assert (one.num_tokens, one.error, one.is_told) == (1, "rank_died", False)
        assert (two.group_id, two.began_s, two.ended_s, two.error, two.is_told) == (second, 103.0, 107.0, None, True)
        new, resume = trail.searches
        assert (new.breakage, new.group_id, resume.group_id) == (None, first, second)
        assert (resume.breakage.group_id, resume.breakage.cause, resume.breakage.num_tokens) == (first, "rank_died", 1)
        assert trail.num_resumes == 1
        # Of the first group: half a second each until its token, then two seconds until it broke.
        assert [trail.total_s(name) for name in ("queue", "prefill", "decode")] == [1.0, 1.0, 2.0]

    run(main())


def test_waiting_for_a_group_that_starts_is_a_hold(run):
    async def main():
        fleet = Fleet("g1")
        await fleet.announce("g1", "restarting")
        trail = StreamTrail(fleet.streams.clock)
        task = asyncio.create_task(read(fleet, trail))
        await asyncio.sleep(0.02)
        await fleet.announce("g1")
        await fleet.settle()
        fleet.finish("g1")
        await task
        await fleet.close()
        (search,) = trail.searches
        assert search.began_s <= search.held_from_s <= search.held_until_s <= search.ended_s
        assert trail.hold_s == pytest.approx(search.ended_s - search.began_s, abs=0.02)
        assert trail.hold_s > 0.01

    run(main())


def test_a_search_in_vain_leaves_its_reason(run):
    async def main():
        fleet = Fleet("g1", limits=StreamLimits(resume_wait_s=0.01))
        await fleet.announce("g1", "restarting")
        trail = StreamTrail(fleet.streams.clock)
        with pytest.raises(Exception, match="no replica group"):
            await read(fleet, trail)
        await fleet.close()
        (search,) = trail.searches
        assert (search.error, search.group_id, trail.parts) == ("not_ready", None, [])
        assert search.ended_s > search.began_s

    run(main())
