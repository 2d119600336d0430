"""Callers wait for a group in order, in bounded number, for a bounded time."""

import asyncio

import pytest

from core.errors import NotReady
from deployments.groups.holding import HoldingQueue


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_can_go_at_once_is_not_held():
    queue = HoldingQueue(max_held=0, timeout_s=1)
    asyncio.run(queue.hold(lambda: True))


def test_held_callers_go_in_order_of_arrival():
    async def scenario():
        queue, is_open, gone = HoldingQueue(max_held=3, timeout_s=5), False, []

        async def caller(name):
            await queue.hold(lambda: is_open)
            gone.append(name)

        tasks = [asyncio.create_task(caller(name)) for name in "abc"]
        await settle()
        queue.wake()  # in vain
        await settle()
        assert len(queue) == 3 and not gone
        is_open = True
        queue.wake()
        await asyncio.gather(*tasks)
        assert gone == ["a", "b", "c"] and len(queue) == 0

    asyncio.run(scenario())


def test_one_too_many_is_refused_at_once_with_a_time_to_come_back():
    async def scenario():
        queue = HoldingQueue(max_held=1, timeout_s=5)
        held = asyncio.create_task(queue.hold(lambda: False))
        await settle()
        with pytest.raises(NotReady, match="1 requests wait") as refusal:
            await queue.hold(lambda: False)
        assert refusal.value.retry_after_s
        held.cancel()

    asyncio.run(scenario())


def test_who_waits_in_vain_is_told_and_leaves_its_place():
    async def scenario():
        queue = HoldingQueue(max_held=1, timeout_s=60)
        with pytest.raises(NotReady, match="within 0.01 s"):
            await queue.hold(lambda: False, timeout_s=0.01)
        assert len(queue) == 0

    asyncio.run(scenario())


def test_a_cancelled_caller_leaves_its_place():
    async def scenario():
        queue = HoldingQueue(max_held=1, timeout_s=60)
        held = asyncio.create_task(queue.hold(lambda: False))
        await settle()
        held.cancel()
        await settle()
        assert len(queue) == 0

    asyncio.run(scenario())
