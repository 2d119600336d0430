"""What a group tells routers: red if prefix news is lost unnoticed, gossip is late, doubled or comes back to its
origin, or peers of different releases talk past each other.
"""

import asyncio
from contextlib import asynccontextmanager

import msgspec
import pytest

from core.errors import QueueFull, ReplicaFailed
from core.frames import authenticate_stream, pack, read_frame
from deployments.groups.in_process import InProcessTransport
from deployments.groups.transport import GroupListener
from deployments.token_channel import reports
from deployments.token_channel.client import TcpTransport
from deployments.token_channel.gossip import GOSSIP_PERIOD_S
from deployments.token_channel.messages import FromGroup, Load, Placed, Welcome
from deployments.token_channel.server import TokenChannelServer
from engine.block_pool import BlockPool
from engine.prefix_cache import BlockHasher, PrefixCache
from engine.prefix_feed import PrefixFeed
from engine.prefix_keys import prefix_keys
from engine.request import Placement
from parallel.plan import pack_integers
from tests.support.fake_target import FakeTarget, engine_load, generation_request

SECRET = b"a shared secret"
OLD_WELCOME = {"type": "Welcome", "group_id": "g", "model": "m", "generation": 1}


class Cache:
    """A prefix cache of eight spans, its feed, and prompts to fill it with."""

    def __init__(self, **limits):
        self.feed = PrefixFeed(64, **limits)
        self._pool = BlockPool(8, self.feed)
        self._cache = PrefixCache(self._pool, 64, listener=self.feed)

    def hold(self, number, num_spans=1):
        """Compute a prompt of its own; return its keys."""
        packed = pack_integers([number] * 64 * num_spans)
        blocks = self._pool.allocate(num_spans)
        self._cache.publish(BlockHasher(64, ""), packed, blocks, 0, num_spans)
        self._pool.release(blocks)
        return prefix_keys(packed, "")


class Gateway:
    """What a router would make of what it hears."""

    def __init__(self):
        self.loads, self.placed, self.news = [], [], []
        self.keys, self._version = set(), None
        self.listener = GroupListener(self.loads.append, self.on_prefixes, self.placed.append)

    def on_prefixes(self, news):
        self.news.append(news)
        if not news.is_snapshot and self._version != (news.epoch, news.sequence - 1):
            return False
        if news.is_snapshot:
            self.keys.clear()
        self._version = news.epoch, news.sequence
        self.keys.update(news.stored)
        self.keys.difference_update(news.removed)
        return True


@asynccontextmanager
async def group(target=None, feed=None, num_gateways=1, load_period_s=0.002):
    """A server whose feed can be exchanged by `feeds.append`, and gateways that listen to it."""
    feeds = [feed]
    server = TokenChannelServer(
        target or FakeTarget(), SECRET, load_period_s=load_period_s, prefix_feed=lambda: feeds[-1]
    )
    await server.start()
    gateways = [Gateway() for _ in range(num_gateways)]
    transports = [await TcpTransport.connect(server.address, "group-1", gateway.listener) for gateway in gateways]
    try:
        yield feeds, gateways, transports
    finally:
        for transport in transports:
            await transport.close()
        await server.close()


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_gateway_gets_a_snapshot_when_it_comes_and_then_what_changes(run):
    async def main():
        cache = Cache()
        held = cache.hold(1, num_spans=2)
        async with group(feed=cache.feed) as (_, (gateway,), _):
            await until(lambda: gateway.keys == set(held))
            assert gateway.news[0].is_snapshot
            held += cache.hold(2)
            await until(lambda: gateway.keys == set(held))
            cache.hold(3, num_spans=8)  # which takes the place of all others
            await until(lambda: not gateway.keys & set(held))
            assert len(gateway.keys) == 8
            assert [news.is_snapshot for news in gateway.news].count(True) == 1

    run(main())


def test_a_gateway_that_missed_news_asks_for_a_snapshot_and_others_are_not_bothered(run, monkeypatch):
    monkeypatch.setattr(reports, "SNAPSHOT_PAUSE_S", 0.0)

    async def main():
        cache = Cache()
        async with group(feed=cache.feed, num_gateways=2) as (_, (forgetful, other), _):
            held = cache.hold(1)
            await until(lambda: forgetful.keys == other.keys == set(held))
            forgetful._version = None
            held += cache.hold(2)
            await until(lambda: forgetful.keys == other.keys == set(held))
            assert forgetful.news[-1].is_snapshot
            assert [news.is_snapshot for news in other.news].count(True) == 1

    run(main())


def test_too_many_changes_at_once_are_told_as_a_gap_and_then_a_snapshot(run, monkeypatch):
    monkeypatch.setattr(reports, "SNAPSHOT_PAUSE_S", 0.0)

    async def main():
        cache = Cache(max_changes=4)
        async with group(feed=cache.feed) as (_, (gateway,), _):
            await until(lambda: gateway.news)
            held = cache.hold(1, num_spans=5)
            await until(lambda: gateway.keys == set(held))
            first, gap, second = gateway.news
            assert (gap.is_snapshot, gap.stored, gap.removed) == (False, [], [])
            assert first.is_snapshot
            assert second.is_snapshot

    run(main())


def test_a_new_engine_is_a_new_epoch_told_at_once(run):
    async def main():
        old, new = Cache(), Cache()
        old.hold(1)
        held = new.hold(2)
        async with group(feed=old.feed) as (feeds, (gateway,), _):
            await until(lambda: len(gateway.keys) == 1)
            feeds.append(None)
            feeds.append(new.feed)
            await until(lambda: gateway.keys == set(held))
            assert gateway.news[-1].is_snapshot
            assert len({news.epoch for news in gateway.news}) == 2

    run(main())


def test_snapshots_are_rare_however_often_gateways_ask(run):
    async def main():
        cache = Cache()
        cache.hold(1)
        async with group(feed=cache.feed, num_gateways=3) as (_, gateways, _):
            for gateway in gateways:
                gateway._version = None
            cache.hold(2)
            await until(lambda: all(gateway.loads for gateway in gateways))
            await asyncio.sleep(0.05)
            assert sum(news.is_snapshot for gateway in gateways for news in gateway.news) <= len(gateways)

    run(main())


def test_what_one_gateway_placed_is_told_to_the_others_at_once_and_never_to_itself(run):
    async def main():
        async with group(num_gateways=3, load_period_s=3600) as (_, (origin, *others), transports):
            await transports[0].submit(generation_request("r1", num_prompt_tokens=30, max_tokens=9))
            await until(lambda: all(gateway.placed for gateway in others))
            assert [gateway.placed for gateway in others] == [[Placement(30, 30, 9)]] * 2
            assert origin.placed == []

    run(main())


def test_gateways_that_place_at_the_same_time_hear_of_each_other_only(run):
    async def main():
        async with group(num_gateways=3, load_period_s=3600) as (_, (first, second, third), transports):
            await asyncio.gather(
                transports[0].submit(generation_request("a", num_prompt_tokens=1)),
                transports[0].submit(generation_request("b", num_prompt_tokens=2)),
                transports[1].submit(generation_request("c", num_prompt_tokens=3)),
            )
            await until(lambda: len(third.placed) == 3)
            assert [placement.num_tokens for placement in first.placed] == [3]
            assert sorted(placement.num_tokens for placement in second.placed) == [1, 2]

    run(main())


def test_a_placement_that_a_report_counts_is_not_told_again(run):
    async def main():
        target = FakeTarget()
        server = TokenChannelServer(target, SECRET, load_period_s=3600)
        await server.start()
        gateways = [Gateway(), Gateway()]
        transports = [await TcpTransport.connect(server.address, "group-1", gateway.listener) for gateway in gateways]

        def report():
            target.current_load = engine_load(20, num_running=1)
            server.report_load()

        target.on_submit = lambda: asyncio.get_running_loop().call_soon(report)
        await transports[0].submit(generation_request("r1"))
        await until(lambda: gateways[1].loads and gateways[1].loads[-1].num_running == 1)
        await asyncio.sleep(0.02)
        assert gateways[1].placed == []
        for transport in transports:
            await transport.close()
        await server.close()

    run(main())


def test_a_refused_request_is_no_news(run):
    async def main():
        target = FakeTarget()
        target.refusal = QueueFull("full")
        async with group(target, num_gateways=2, load_period_s=3600) as (_, (_, other), transports):
            with pytest.raises(QueueFull):
                await transports[0].submit(generation_request("r1"))
            await asyncio.sleep(0.02)
            assert other.placed == []

    run(main())


def test_a_gateway_that_does_not_read_does_not_delay_the_news_of_others(run):
    async def main():
        cache = Cache()
        async with group(feed=cache.feed, num_gateways=2) as (_, (_, other), transports):
            transports[0]._connection._transport.pause_reading()
            held = []
            for number in range(6):
                held += cache.hold(number)
                await asyncio.sleep(0.003)
            await until(lambda: other.keys == set(held))

    run(main())


def test_a_group_of_another_release_is_refused_with_the_versions_named(run):
    async def main():
        async def accept(reader, writer):
            await authenticate_stream(reader, writer, SECRET)
            writer.write(pack(msgspec.msgpack.encode(OLD_WELCOME)))
            await reader.read()
            writer.close()
            left.set()

        left = asyncio.Event()
        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        address = TokenChannelServer(FakeTarget(), SECRET, port=port).address
        with pytest.raises(
            ReplicaFailed, match=r"speaks version 1 .* and this gateway version 2; run the same release"
        ):
            await TcpTransport.connect(address, "g")
        await left.wait()
        listener.close()
        await listener.wait_closed()

    run(main())


def test_the_first_frames_are_the_welcome_and_a_report_with_a_snapshot(run):
    async def main():
        cache = Cache()
        held = cache.hold(1)
        server = TokenChannelServer(FakeTarget(), SECRET, load_period_s=3600, prefix_feed=lambda: cache.feed)
        address = await server.start()
        reader, writer = await asyncio.open_connection(address.host, address.port)
        await authenticate_stream(reader, writer, SECRET)
        frames = [msgspec.msgpack.decode(await read_frame(reader), type=FromGroup) for _ in range(2)]
        assert isinstance(frames[0], Welcome)
        assert isinstance(frames[1], Load)
        assert frames[1].prefixes is not None
        assert frames[1].prefixes.stored == held
        writer.close()
        await server.close()

    run(main())


def test_a_gateway_that_is_slow_to_authenticate_gets_its_snapshot_all_the_same(run):
    """Red if what is sent before the welcome, and so reaches nobody, counts as told."""

    async def main():
        cache = Cache()
        held = cache.hold(1)
        server = TokenChannelServer(FakeTarget(), SECRET, load_period_s=3600, prefix_feed=lambda: cache.feed)
        address = await server.start()
        reader, writer = await asyncio.open_connection(address.host, address.port)
        await until(lambda: server.num_connections == 1)
        server.report_load()
        await authenticate_stream(reader, writer, SECRET)
        frames = [msgspec.msgpack.decode(await read_frame(reader), type=FromGroup) for _ in range(2)]
        assert isinstance(frames[1], Load)
        assert frames[1].prefixes is not None
        assert frames[1].prefixes.stored == held
        writer.close()
        await server.close()

    run(main())


def test_in_process_a_listener_hears_the_same(run):
    async def main():
        cache, gateway, target = Cache(), Gateway(), FakeTarget()
        held = cache.hold(1)
        transport = InProcessTransport(target, listener=gateway.listener, prefix_feed=lambda: cache.feed)
        await until(lambda: gateway.keys == set(held))
        gateway._version = None
        held += cache.hold(2)
        await until(lambda: gateway.keys == set(held))
        assert gateway.loads[0] == target.current_load
        assert [news.is_snapshot for news in gateway.news] == [True, False, True]
        await transport.close()

    run(main())


def test_gossip_is_quick_and_small():
    """Red if it waits for more than 10 ms, or tells of a hundred requests in more than one packet."""
    assert GOSSIP_PERIOD_S <= 0.01
    frame = msgspec.msgpack.encode(Placed([Placement(8000, 9000, 512)] * 100))
    assert len(frame) < 1500
