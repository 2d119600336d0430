import asyncio
import contextlib

import msgspec

from cluster.status import GroupStatus
from deployments.announcer import Announcer


def a_status(generation=0):
    return GroupStatus(group_id="g", model="m", application="m", state="starting", generation=generation, world_size=1)


class Gateways:
    """Hears announcements, while it is there."""

    def __init__(self):
        self.heard: list[GroupStatus] = []
        self.is_there = True
        self.new = asyncio.Event()

    async def broadcast(self, data):
        if self.is_there:
            self.heard.append(msgspec.msgpack.decode(data, type=GroupStatus))
            self.new.set()
        return self.is_there

    async def hears(self, count):
        async with asyncio.timeout(5):
            while len(self.heard) < count:
                self.new.clear()
                await self.new.wait()


@contextlib.asynccontextmanager
async def announcing(announcer):
    task = asyncio.create_task(announcer.run())
    try:
        yield
    finally:
        task.cancel()


async def _a_change_is_announced():
    gateways, now = Gateways(), [a_status(0)]
    announcer = Announcer(lambda: now[0], gateways.broadcast, min_interval_s=0, max_interval_s=3600)
    async with announcing(announcer):
        await gateways.hears(1)
        now[0] = a_status(1)
        announcer.wake()
        await gateways.hears(2)
    assert [status.generation for status in gateways.heard] == [0, 1]


def test_a_change_is_announced_without_waiting_for_the_next_round():
    asyncio.run(_a_change_is_announced())


async def _silence_is_broken():
    gateways = Gateways()
    async with announcing(Announcer(a_status, gateways.broadcast, min_interval_s=0, max_interval_s=0.001)):
        await gateways.hears(3)


def test_a_group_that_does_not_change_is_announced_again_and_again():
    asyncio.run(_silence_is_broken())


async def _changes_are_merged():
    gateways, generation = Gateways(), [0]
    announcer = Announcer(lambda: a_status(generation[0]), gateways.broadcast, min_interval_s=0.01, max_interval_s=3600)
    async with announcing(announcer):
        await gateways.hears(1)
        for generation[0] in range(1, 100):
            announcer.wake()
        await gateways.hears(2)
    assert [status.generation for status in gateways.heard] == [0, 99]


def test_a_burst_of_changes_is_one_announcement_of_the_last():
    asyncio.run(_changes_are_merged())


async def _gateways_come_later():
    gateways = Gateways()
    gateways.is_there = False
    announcer = Announcer(a_status, gateways.broadcast, min_interval_s=0, max_interval_s=0.001)
    async with announcing(announcer):
        await asyncio.sleep(0)
        gateways.is_there = True
        await gateways.hears(1)


def test_a_gateway_that_starts_later_hears_the_group_too():
    asyncio.run(_gateways_come_later())
