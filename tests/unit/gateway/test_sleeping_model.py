"""A model that was scaled to zero is woken by its first request, and its gateway counts as ready meanwhile."""

import asyncio

from deployments.gateway.config import GatewayConfig
from tests.support.fake_groups import ScriptedGroup
from tests.support.gateways import AsgiClient, announce_all, make_gateway

CONFIG = GatewayConfig.parse({"models": ["tiny"], "sleeping": {"applications": {"tiny": "tiny-app"}}}, "test")


def asleep(config=CONFIG):
    """A client of a gateway that knows no group; the group appears when its application is started."""
    group, started = ScriptedGroup("x"), []

    async def start(application):
        started.append(application)
        await announce_all(gateway, [group])

    gateway = make_gateway([group], config, start=start)
    return gateway, AsgiClient(gateway.asgi_app()), started


def test_the_first_request_starts_the_model_and_is_answered(run):
    async def main():
        gateway, client, started = asleep()
        answers = await asyncio.gather(client.chat(max_tokens=1), client.complete(max_tokens=1))
        assert [answer.status for answer in answers] == [200, 200]
        assert started == ["tiny-app"]
        await gateway.close()

    run(main())


def test_a_gateway_whose_model_sleeps_is_ready_for_the_request_that_wakes_it(run):
    async def main():
        gateway, client, started = asleep()
        assert (await client.get("/readyz")).status == 200
        assert not started
        await gateway.close()

    run(main())


def test_a_model_nobody_said_may_sleep_is_not_started(run):
    async def main():
        gateway, client, started = asleep(GatewayConfig(models=("tiny",)))
        answer = await client.chat(max_tokens=1)
        assert (answer.status, started) == (503, [])
        await gateway.close()

    run(main())
