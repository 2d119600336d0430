"""UnbrokenStreams over groups that break at the worst moments: red if a stream is lost, doubled, or waits in vain."""

import asyncio

import msgspec
import pytest

from core.errors import (
    ContextTooLong,
    DeadlineExceeded,
    Draining,
    EaglerayError,
    NotReady,
    QueueFull,
    RankDied,
    RequestQuarantined,
)
from deployments.groups.group_search import StreamLimits
from engine.request import TokenEvent
from tests.support.fake_clock import FakeClock
from tests.support.fake_target import generation_request
from tests.support.fleets import Fleet

SHORT = StreamLimits(resume_wait_s=0.05)
PROMPT = [0, 1, 2, 3]


class Reader:
    """Reads a stream in a task of its own."""

    def __init__(self, fleet: Fleet, request=None):
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.group_id: str | None = None
        self._fleet = fleet
        self.task = asyncio.create_task(self._read(request or generation_request("r1")))

    async def _read(self, request):
        async with await self._fleet.streams.open("tiny", request) as stream:
            self.group_id = stream.group_id
            async for event in stream:
                self.tokens += event.token_ids
                self.finish_reason = event.finish_reason
                self.group_id = stream.group_id


async def reading(fleet: Fleet, request=None) -> Reader:
    reader = Reader(fleet, request)
    await fleet.settle()
    return reader


def other(group_id: str) -> str:
    return {"g1": "g2", "g2": "g1"}[group_id]


def last_request(fleet: Fleet, group_id: str):
    return list(fleet.targets[group_id].requests.values())[-1]


def test_a_broken_stream_goes_on_elsewhere_with_prompt_and_emitted_tokens_under_a_new_id(run):
    async def main():
        fleet = await Fleet("g1", "g2").start()
        reader = await reading(fleet)
        first = reader.group_id
        fleet.give(first, 11, 12)
        await fleet.settle()
        await fleet.break_group(first)
        resumed = last_request(fleet, other(first))
        assert (resumed.token_ids, resumed.num_prompt_tokens) == ([*PROMPT, 11, 12], len(PROMPT))
        assert resumed.sampling == generation_request("r1").sampling
        assert resumed.request_id != "r1"
        fleet.give(other(first), 13)
        fleet.finish(other(first))
        await reader.task
        assert (reader.tokens, reader.finish_reason) == ([11, 12, 13], "stop")
        assert fleet.streams.counts["tiny"].num_resumes == 1
        await fleet.close()

    run(main())


def test_late_events_of_an_abandoned_attempt_reach_nobody(run):
    async def main():
        fleet = await Fleet("g1", "g2").start()
        reader = await reading(fleet)
        first = reader.group_id
        late_sink = fleet.targets[first].sinks["r1"]
        await fleet.break_group(first)
        late_sink([TokenEvent("r1", [99]), TokenEvent("r1", [], finish_reason="stop")])
        await fleet.settle()
        fleet.give(other(first), 1)
        fleet.finish(other(first))
        await reader.task
        assert reader.tokens == [1]
        await fleet.close()

    run(main())


def test_without_another_group_a_stream_waits_for_its_own_to_heal(run):
    async def main():
        fleet = await Fleet("g1").start()
        reader = await reading(fleet)
        fleet.give("g1", 5)
        await fleet.settle()
        await fleet.break_group("g1")
        await fleet.announce("g1", "restarting")
        assert not reader.task.done() and fleet.streams.num_held == 1
        await fleet.heal("g1")
        assert fleet.streams.num_held == 0
        fleet.give("g1", 6)
        fleet.finish("g1")
        await reader.task
        assert reader.tokens == [5, 6]
        await fleet.close()

    run(main())


def test_a_stream_that_waits_in_vain_ends_with_what_broke_it_and_why_nobody_went_on(run):
    async def main():
        fleet = await Fleet("g1", limits=SHORT).start()
        reader = await reading(fleet)
        await fleet.break_group("g1")
        await fleet.announce("g1", "restarting")
        with pytest.raises(RankDied, match=r"a rank of g1 died; no other .*g1 is restarting"):
            await reader.task
        assert fleet.streams.counts["tiny"].num_given_up == 1
        assert fleet.streams.num_open == 0
        await fleet.close()

    run(main())


def test_a_full_group_refuses_new_requests_at_once_and_is_waited_for_by_broken_streams(run):
    async def main():
        fleet = await Fleet("g1", "g2").start()
        reader = await reading(fleet)
        first = reader.group_id
        fleet.targets[other(first)].refusal = QueueFull("full", retry_after_s=1.0)
        await fleet.break_group(first, Draining("g1 shut down"))
        await fleet.announce(first, "draining")
        with pytest.raises(QueueFull):
            await fleet.streams.open("tiny", generation_request("r2"))
        assert not reader.task.done()
        fleet.targets[other(first)].refusal = None
        while not fleet.targets[other(first)].sinks:
            await asyncio.sleep(0.01)
        fleet.finish(other(first))
        await reader.task
        await fleet.close()

    run(main())


def test_a_new_request_waits_for_a_restarting_group(run):
    async def main():
        fleet = Fleet("g1")
        await fleet.announce("g1", "restarting")
        reader = await reading(fleet)
        assert fleet.streams.num_held == 1
        await fleet.announce("g1", "ready")
        fleet.finish("g1")
        await reader.task
        assert fleet.streams.counts["tiny"].num_held == 1
        await fleet.close()

    run(main())


def test_a_new_request_does_not_wait_where_only_failed_groups_are(run):
    async def main():
        fleet = Fleet("g1")
        await fleet.announce("g1", "failed")
        with pytest.raises(NotReady, match="g1 is failed"):
            await fleet.streams.open("tiny", generation_request("r1"))
        await fleet.close()

    run(main())


def test_no_more_new_requests_wait_than_are_allowed_but_broken_streams_always_may(run):
    async def main():
        fleet = await Fleet("g1", limits=StreamLimits(max_held_requests=2)).start()
        broken = [await reading(fleet, generation_request(f"b{number}")) for number in range(5)]
        await fleet.break_group("g1")
        await fleet.announce("g1", "restarting")
        new = [await reading(fleet, generation_request(f"n{number}")) for number in range(3)]
        assert [reader.task.done() for reader in new] == [False, False, True]
        with pytest.raises(NotReady):
            await new[2].task
        assert fleet.streams.num_held == 7
        await fleet.heal("g1")
        fleet.finish("g1")
        await asyncio.gather(*(reader.task for reader in [*broken, *new[:2]]))
        await fleet.close()

    run(main())


def test_the_deadline_shrinks_by_the_time_that_has_passed(run):
    async def main():
        clock = FakeClock()
        fleet = await Fleet("g1", "g2", clock=clock).start()
        reader = await reading(fleet, msgspec.structs.replace(generation_request("r1"), deadline_s=10.0))
        first = reader.group_id
        assert last_request(fleet, first).deadline_s == 10.0
        clock.advance(4)
        await fleet.break_group(first)
        assert last_request(fleet, other(first)).deadline_s == 6.0
        clock.advance(7)
        await fleet.break_group(other(first))
        with pytest.raises(DeadlineExceeded):
            await reader.task
        await fleet.close()

    run(main())


def test_a_stream_that_breaks_again_before_its_next_token_keeps_its_place_in_line(run):
    async def main():
        clock = FakeClock()
        fleet = await Fleet("g1", "g2", clock=clock).start()
        reader = await reading(fleet)
        first = reader.group_id
        fleet.give(first, 5)
        await fleet.settle()
        clock.advance(4)
        await fleet.break_group(first)
        assert last_request(fleet, other(first)).waited_s == 0
        await fleet.heal(first)
        clock.advance(3)
        await fleet.break_group(other(first))
        assert last_request(fleet, first).waited_s == 3
        await fleet.heal(other(first))
        fleet.give(first, 6)
        await fleet.settle()
        await fleet.break_group(first)
        assert last_request(fleet, other(first)).waited_s == 0
        fleet.finish(other(first))
        await reader.task
        assert reader.tokens == [5, 6]
        await fleet.close()

    run(main())


@pytest.mark.parametrize("error", [ContextTooLong("too long"), DeadlineExceeded("late"), EaglerayError("a bug")])
def test_an_end_that_is_the_requests_own_is_not_tried_elsewhere(run, error):
    async def main():
        fleet = await Fleet("g1", "g2").start()
        reader = await reading(fleet)
        first = reader.group_id
        await fleet.break_group(first, error)
        with pytest.raises(type(error)):
            await reader.task
        assert not fleet.targets[other(first)].requests
        await fleet.close()

    run(main())


def test_a_client_that_leaves_while_its_stream_is_held_leaves_nothing_behind(run):
    async def main():
        fleet = await Fleet("g1").start()
        reader = await reading(fleet)
        await fleet.break_group("g1")
        await fleet.announce("g1", "restarting")
        reader.task.cancel()
        await asyncio.gather(reader.task, return_exceptions=True)
        assert (fleet.streams.num_held, fleet.streams.num_open) == (0, 0)
        await fleet.close()

    run(main())


def test_leaving_early_cancels_the_attempt_that_runs_and_no_other(run):
    async def main():
        fleet = await Fleet("g1", "g2").start()
        reader = await reading(fleet)
        first = reader.group_id
        await fleet.break_group(first)
        reader.task.cancel()
        await asyncio.gather(reader.task, return_exceptions=True)
        assert fleet.targets[first].cancelled == []
        assert len(fleet.targets[other(first)].cancelled) == 1
        await fleet.close()

    run(main())


def test_innocents_finish_while_the_request_that_kills_groups_is_given_up_after_three(run):
    """The poison kills whatever group has it, before the group generates anything in that step."""

    async def main():
        fleet = await Fleet("g1", "g2").start()
        poison = await reading(fleet, generation_request("poison", num_prompt_tokens=9))
        innocents = [await reading(fleet, generation_request(f"i{number}")) for number in range(15)]
        num_deaths = 0
        while not poison.task.done():
            for group_id, target in fleet.targets.items():
                if any(request_id.startswith("poison") for request_id in target.sinks):
                    num_deaths += 1
                    await fleet.break_group(group_id)
                    await fleet.heal(group_id)
                elif target.sinks:
                    fleet.give(group_id, 1)
            await fleet.settle()
        with pytest.raises(RequestQuarantined):
            await poison.task
        assert num_deaths == 3
        while not all(reader.task.done() for reader in innocents):
            for group_id in fleet.targets:
                fleet.give(group_id, 1)
                fleet.finish(group_id)
            await fleet.settle()
        assert {reader.finish_reason for reader in innocents} == {"stop"}
        with pytest.raises(RequestQuarantined, match="refused for ten minutes"):
            await fleet.streams.open("tiny", generation_request("again", num_prompt_tokens=9))
        await fleet.close()

    run(main())


def test_two_that_kill_are_given_up_one_after_the_other_each_when_it_was_alone(run):
    async def main():
        fleet = await Fleet("g1", "g2", limits=StreamLimits(resume_wait_s=0)).start()
        readers = [await reading(fleet, generation_request(f"r{length}", length)) for length in (7, 9)]
        while not all(reader.task.done() for reader in readers):
            for group_id, target in fleet.targets.items():
                if target.sinks:
                    await fleet.break_group(group_id)
                    await fleet.heal(group_id)
        for reader in readers:
            with pytest.raises(RequestQuarantined):
                await reader.task
        again = [generation_request("again", length) for length in (7, 9)]
        assert sum(fleet.streams.quarantine.has("tiny", request) for request in again) == 2
        await fleet.close()

    run(main())


def test_closing_ends_streams_that_wait_and_streams_that_break(run):
    async def main():
        fleet = await Fleet("g1").start()
        broken = await reading(fleet)
        await fleet.break_group("g1")
        await fleet.announce("g1", "restarting")
        new = await reading(fleet, generation_request("r2"))
        assert fleet.streams.num_held == 2
        fleet.streams.close()
        await fleet.settle()
        with pytest.raises(RankDied):
            await broken.task
        with pytest.raises(NotReady):
            await new.task
        await fleet.close()

    run(main())


def test_a_request_that_kills_a_few_tokens_later_is_given_up_after_eight_and_remembered(run):
    async def main():
        fleet = await Fleet("g1", "g2").start()
        poison = await reading(fleet)
        num_deaths = 0
        while not poison.task.done():
            group_id = next(group_id for group_id, target in fleet.targets.items() if target.sinks)
            fleet.give(group_id, 1)
            await fleet.settle()
            await fleet.break_group(group_id)
            await fleet.heal(group_id)
            num_deaths += 1
        with pytest.raises(RequestQuarantined, match="after 8 attempts"):
            await poison.task
        assert (num_deaths, len(poison.tokens)) == (8, 8)
        assert fleet.streams.quarantine.has("tiny", generation_request("again"))
        await fleet.close()

    run(main())
