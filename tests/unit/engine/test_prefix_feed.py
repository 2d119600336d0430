"""Prefix news against the pool it is about: red if a router that follows it would believe what is not so."""

import random
import subprocess
import sys
import threading

import pytest

from engine.block_pool import BlockPool
from engine.prefix_cache import BlockHasher, PrefixCache
from engine.prefix_feed import PrefixFeed
from engine.prefix_keys import SPAN_TOKENS, prefix_keys
from parallel.plan import pack_integers
from tests.support.engines import Collector, make_config, make_engine, make_request, run_until_idle, tiny_spec
from tests.support.fake_ranks import FakeRankPool
from tests.support.source_tree import ROOT


class World:
    """A small pool with a feed, and every prompt it was ever given."""

    def __init__(self, block_size, num_spans=12, **limits):
        self.block_size = block_size
        self.feed = PrefixFeed(block_size, **limits)
        self.pool = BlockPool(num_spans * SPAN_TOKENS // block_size, self.feed)
        self.cache = PrefixCache(self.pool, block_size, listener=self.feed)
        self.prompts = {}

    def compute(self, token_ids, salt="", step=1000):
        """Publish the prompt's full blocks, some at a time, as chunks of a prefill would."""
        packed = pack_integers(token_ids)
        num_blocks = len(token_ids) // self.block_size
        hasher = BlockHasher(self.block_size, salt)
        self.prompts[(packed, salt)] = hasher
        blocks = self.pool.allocate(num_blocks)
        for first in range(0, num_blocks, step):
            self.cache.publish(hasher, packed, blocks, first, min(first + step, num_blocks))
        self.pool.release(blocks)

    def truth(self):
        """The keys of all spans whose last block can be found."""
        size = SPAN_TOKENS // self.block_size
        return {
            key
            for (packed, salt), hasher in self.prompts.items()
            for span, key in enumerate(prefix_keys(packed, salt))
            if self.pool.find(hasher.hashes[(span + 1) * size - 1]) is not None
        }


class Follower:
    """What a router makes of news."""

    def __init__(self):
        self.keys = set()
        self.sequence = None

    def apply(self, news):
        """Return whether the news could be used."""
        if news is None:
            return True
        if not news.is_snapshot and news.sequence - 1 != self.sequence:
            return False
        if news.is_snapshot:
            self.keys.clear()
        self.sequence = news.sequence
        self.keys.update(news.stored)
        self.keys.difference_update(news.removed)
        return True


def test_keys_are_those_a_gateway_computes_from_the_tokens():
    world = World(16)
    world.compute(range(200), salt="tenant")
    news = world.feed.take_news()
    assert news.stored == prefix_keys(pack_integers(range(200)), "tenant")
    assert len(news.stored) == 3
    assert news.stored != prefix_keys(pack_integers(range(200)), "other")


@pytest.mark.parametrize("block_size", [8, 16, 32, 64])
def test_a_span_is_stored_with_its_last_block_and_removed_with_it(block_size):
    world, size = World(block_size), SPAN_TOKENS // block_size
    packed, hasher = pack_integers(range(SPAN_TOKENS)), BlockHasher(block_size, "")
    blocks = world.pool.allocate(size)
    if size > 1:
        world.cache.publish(hasher, packed, blocks, 0, size - 1)
        assert world.feed.take_news() is None
    world.cache.publish(hasher, packed, blocks, size - 1, size)
    keys = prefix_keys(packed, "")
    assert world.feed.take_news().stored == keys
    world.pool.release(blocks)
    world.pool.allocate(world.pool.num_free)
    assert world.feed.take_news() is None
    world.pool.allocate(1)  # takes the last of the cached blocks first
    assert world.feed.take_news().removed == keys


def test_what_was_undone_before_anybody_heard_of_it_is_told_as_it_is_now():
    world = World(64, num_spans=1)
    world.compute(range(64))
    world.compute(range(100, 164))
    news = world.feed.take_news()
    assert news.stored == prefix_keys(pack_integers(range(100, 164)), "")
    assert news.removed == prefix_keys(pack_integers(range(64)), "")
    world.compute(range(64))
    assert world.feed.take_news().stored == news.removed


@pytest.mark.parametrize("seed", range(4))
def test_whoever_follows_the_news_knows_what_the_pool_holds(seed):
    rng = random.Random(seed)
    world, follower = World(rng.choice([8, 16, 32, 64]), max_changes=6), Follower()
    follower.apply(world.feed.snapshot())
    num_gaps = 0
    for _ in range(300):
        shared = [rng.randrange(3)] * SPAN_TOKENS * rng.randrange(4)
        own = [rng.randrange(20)] * rng.randrange(SPAN_TOKENS * 4)
        world.compute(shared + own, salt=rng.choice(["", "tenant"]), step=rng.choice([1, 3, 1000]))
        if rng.random() < 0.5 and not follower.apply(world.feed.take_news()):
            num_gaps += 1
            # Changes that came after the last news are in the snapshot, and come again with the next news.
            follower.apply(world.feed.snapshot())
            assert follower.keys == world.truth()
        if rng.random() < 0.1:
            late = Follower()
            late.apply(world.feed.snapshot())
            assert late.keys == world.truth()
    assert num_gaps > 0
    if not follower.apply(world.feed.take_news()):
        follower.apply(world.feed.snapshot())
    assert follower.keys == world.truth()


def test_changes_that_nobody_takes_are_kept_in_bounded_memory():
    world = World(64, max_changes=10)
    for number in range(100):
        world.compute([number] * 128)
    assert len(world.feed._changes) <= 10
    assert world.feed.take_news().sequence == 2
    assert world.feed.take_news() is None


def test_a_snapshot_too_large_keeps_the_beginnings_that_others_hang_on():
    world = World(64, max_snapshot_keys=2)
    world.compute(range(256))
    assert world.feed.snapshot().stored == prefix_keys(pack_integers(range(256)), "")[:2]


def test_snapshots_may_be_taken_while_the_engine_publishes():
    """Red if a snapshot walks over what the engine thread changes, or shows half a change."""
    world, stop, problems = World(8, num_spans=40), threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                world.feed.snapshot()
                world.feed.take_news()
            except RuntimeError as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(400):
        world.compute([number] * 640)
    stop.set()
    reader.join()
    assert problems == []
    assert set(world.feed.snapshot().stored) == world.truth()


def test_an_engine_tells_of_prompts_and_outputs_alike():
    ranks, feed, sink = FakeRankPool(vocab_size=1000), PrefixFeed(8), Collector()
    engine = make_engine(ranks, 64, make_config(), tiny_spec(vocab_size=1000), prefix_feed=feed)
    engine.submit(make_request("a", range(100), max_tokens=40, cache_salt="s"), sink)
    run_until_idle(engine)
    # The last token was sampled and never computed.
    token_ids = [*range(100), *sink.tokens("a")][:-1]
    assert feed.snapshot().stored == prefix_keys(pack_integers(token_ids), "s")
    assert len(feed.snapshot().stored) == 2


def test_an_engine_that_nobody_routes_to_runs_without_xxhash():
    code = "import sys; sys.modules['xxhash'] = None; import engine.engine, engine.generate"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
