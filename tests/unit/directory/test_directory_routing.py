"""What a gateway's router is told: red if news of a group does not reach it, or a request is described wrongly."""

import asyncio

import msgspec
import pytest

from cluster.routing.policies import POLICIES
from core.errors import InvalidConfig, ReplicaFailed
from deployments.gateway.config import GatewayConfig
from deployments.groups.routing import RoutingConfig, make_router, routing_request
from engine.prefix_feed import PrefixNews
from engine.prefix_keys import prefix_keys
from engine.request import Placement
from parallel.plan import pack_integers
from tests.support.fake_target import engine_load, generation_request
from tests.support.fleets import Fleet

PROMPT = list(range(256))


def request(request_id: str = "r1", salt: str = "", num_emitted: int = 0):
    """Return a request with a prompt of four spans."""
    plain = generation_request(request_id)
    token_ids = [*PROMPT, *range(num_emitted)]
    return msgspec.structs.replace(plain, token_ids=token_ids, num_prompt_tokens=len(PROMPT), cache_salt=salt)


async def group_of(fleet: Fleet, request) -> str:
    async with await fleet.directory.submit("tiny", request) as stream:
        return stream.group_id


def test_a_request_is_described_by_its_tokens_and_the_keys_of_its_tenant():
    config = RoutingConfig(ttft_target_s=1, ttft_limit_s=5)
    wanted = routing_request(config, "tiny", request(salt="tenant"))
    assert (wanted.num_tokens, wanted.max_tokens, wanted.model) == (256, 16, "tiny")
    assert (wanted.ttft_target_s, wanted.ttft_limit_s) == (1, 5)
    assert wanted.prefix_keys == prefix_keys(pack_integers(PROMPT), "tenant")
    assert len(wanted.prefix_keys) == 4


def test_what_a_broken_stream_was_given_is_computed_again_and_no_longer_wanted_and_it_is_never_shed():
    wanted = routing_request(RoutingConfig(ttft_limit_s=5), "tiny", request(num_emitted=10))
    assert (wanted.num_tokens, wanted.max_tokens, wanted.ttft_limit_s) == (266, 6, None)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_can_be_chosen_by_name(policy):
    config = GatewayConfig.parse({"routing": {"policy": policy}}, "test")
    with make_router(config.routing).reserve(["g1"], routing_request(config.routing, "tiny", request())) as reservation:
        assert reservation.group_id == "g1"


def test_an_unknown_policy_is_refused_naming_those_there_are():
    with pytest.raises(InvalidConfig, match="use one of cost, dynamo"):
        GatewayConfig.parse({"routing": {"policy": "fastest"}}, "test")


@pytest.mark.parametrize("holder", ["g1", "g2"])
def test_a_prompt_goes_where_its_prefix_is_cached(holder):
    async def main():
        fleet = await Fleet("g1", "g2").start()
        for listener in fleet.listeners.values():
            listener.on_load(engine_load())
        news = PrefixNews(7, 1, True, prefix_keys(pack_integers(PROMPT), "tenant"), [])
        assert fleet.listeners[holder].on_prefixes(news)
        assert [await group_of(fleet, request(f"r{number}", "tenant")) for number in range(4)] == [holder] * 4
        await fleet.close()

    asyncio.run(main())


def test_a_gap_in_prefix_news_asks_for_a_snapshot_but_not_for_a_forgotten_group():
    async def main():
        fleet = await Fleet("g1").start()
        assert not fleet.listeners["g1"].on_prefixes(PrefixNews(7, 5, False, [1], []))
        await fleet.close()
        assert fleet.listeners["g1"].on_prefixes(PrefixNews(7, 9, False, [1], []))

    asyncio.run(main())


def test_what_another_gateway_placed_steers_the_choice_at_once():
    async def main():
        fleet = await Fleet("g1", "g2").start()
        for listener in fleet.listeners.values():
            listener.on_load(engine_load())
        fleet.listeners["g1"].on_placed(Placement(num_uncached_tokens=50_000, num_tokens=50_000, max_tokens=100))
        assert [await group_of(fleet, generation_request(f"r{number}")) for number in range(4)] == ["g2"] * 4
        await fleet.close()

    asyncio.run(main())


def test_a_group_that_broke_under_requests_is_left_alone_for_a_while():
    async def main():
        fleet = await Fleet("g1", "g2").start()
        for listener in fleet.listeners.values():
            listener.on_load(engine_load())
        fleet.targets["g1"].refusal = ReplicaFailed("broken")
        for number in range(12):
            assert await group_of(fleet, generation_request(f"r{number}")) == "g2"
        fleet.targets["g1"].refusal = None
        assert await group_of(fleet, generation_request("later")) == "g2"
        assert not fleet.targets["g1"].requests
        await fleet.close()

    asyncio.run(main())
