"""The first request for a model without groups starts one and waits for it."""

import asyncio

import pytest

from core.errors import NotReady, ReplicaFailed
from deployments.groups.sleeping import SleepConfig, SleepingModels


class Models:
    def __init__(self, **config):
        self.awake = set()
        self.started = []
        self.running = asyncio.Event()
        config = {"applications": {"small": "small-app"}} | config
        self.sleeping = SleepingModels(SleepConfig.parse(config, "test"), self.awake.__contains__, self.start)

    async def start(self, application):
        self.started.append(application)
        await self.running.wait()

    def wake_up(self, model):
        self.awake.add(model)
        self.sleeping.note_change()


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_many_requests_start_one_group_and_go_on_when_it_is_there():
    async def scenario():
        models = Models()
        waiting = [asyncio.create_task(models.sleeping.wake("small")) for _ in range(10)]
        await settle()
        assert models.started == ["small-app"] and not any(task.done() for task in waiting)
        models.wake_up("small")
        await asyncio.gather(*waiting)
        await models.sleeping.close()

    asyncio.run(scenario())


def test_models_that_run_or_never_sleep_are_not_waited_for():
    async def scenario():
        models = Models()
        models.wake_up("small")
        await models.sleeping.wake("small")
        await models.sleeping.wake("another")
        assert not models.started

    asyncio.run(scenario())


def test_a_model_that_does_not_wake_in_time_is_not_ready():
    async def scenario():
        models = Models(wait_s=0.01)
        with pytest.raises(NotReady):
            await models.sleeping.wake("small")
        await models.sleeping.close()

    asyncio.run(scenario())


def test_after_a_start_that_failed_the_next_request_tries_again():
    async def scenario():
        models = Models(wait_s=0.01)

        async def fail(application):
            models.started.append(application)
            raise ReplicaFailed("no such application")

        models.sleeping._start = fail
        for _ in range(2):
            with pytest.raises(NotReady):
                await models.sleeping.wake("small")
        assert models.started == ["small-app", "small-app"]

    asyncio.run(scenario())
