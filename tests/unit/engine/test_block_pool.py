"""Blocks are free, referenced or cached, never two of them, never lost."""

import random
import time

import pytest

from engine.block_pool import BlockPool, OutOfBlocks


class Listener:
    def __init__(self):
        self.evicted = []

    def on_evicted(self, block_hashes):
        self.evicted += block_hashes


def publish(pool, blocks, *names):
    pool.publish(blocks, [name.encode() for name in names])


def test_allocated_blocks_are_distinct_and_referenced():
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    assert len(set(blocks)) == 3
    assert (pool.num_free, pool.num_referenced, pool.num_cached) == (1, 3, 0)


def test_asking_for_more_than_is_available_changes_nothing():
    pool = BlockPool(4)
    pool.allocate(2)
    with pytest.raises(OutOfBlocks, match="3 KV blocks asked, 2 of 4"):
        pool.allocate(3)
    assert pool.num_free == 2


def test_a_published_block_stays_findable_after_its_release():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    publish(pool, blocks, "a")
    pool.release(blocks)
    assert pool.find(b"a") == blocks[0]
    assert (pool.num_free, pool.num_cached) == (1, 1)


def test_an_unpublished_block_becomes_free_on_release():
    pool = BlockPool(2)
    pool.release(pool.allocate(2))
    assert pool.num_free == 2


def test_a_shared_block_is_referenced_until_its_last_user_leaves():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    publish(pool, blocks, "a")
    pool.share(blocks)
    pool.release(blocks)
    assert pool.num_referenced == 1
    pool.release(blocks)
    assert (pool.num_referenced, pool.num_cached) == (0, 1)


def test_free_blocks_are_used_before_anything_is_evicted():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    publish(pool, blocks, "a")
    pool.release(blocks)
    pool.allocate(1)
    assert pool.find(b"a") is not None


def test_tails_are_evicted_before_the_prefixes_they_hang_on():
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    publish(pool, blocks, "head", "middle", "tail")
    pool.release(blocks)
    pool.allocate(1)
    assert [pool.find(name) is not None for name in (b"head", b"middle", b"tail")] == [True, True, False]
    pool.allocate(1)
    assert pool.find(b"middle") is None


def test_the_least_recently_used_block_is_evicted_first():
    pool = BlockPool(2)
    first, second = pool.allocate(1), pool.allocate(1)
    publish(pool, first, "first")
    publish(pool, second, "second")
    pool.release(first)
    pool.release(second)
    pool.share(first)
    pool.release(first)
    pool.allocate(1)
    assert pool.find(b"first") is not None
    assert pool.find(b"second") is None


def test_evicting_one_block_after_another_does_not_walk_over_those_evicted_before():
    # Turns red if an eviction costs more than O(1): the first key of a plain dict made this take ten seconds.
    pool = BlockPool(200_000)
    blocks = pool.allocate(pool.num_blocks)
    pool.publish(blocks, [str(block).encode() for block in blocks])
    pool.release(blocks)
    began_s = time.thread_time()
    for _ in range(100_000):
        pool.allocate(1)
    assert time.thread_time() - began_s < 2


def test_content_that_is_already_published_keeps_its_first_block():
    pool = BlockPool(2)
    first, second = pool.allocate(1), pool.allocate(1)
    publish(pool, first, "same")
    publish(pool, second, "same")
    assert pool.find(b"same") == first[0]
    pool.release(second)
    assert pool.num_free == 1


def test_listener_hears_what_can_no_longer_be_found():
    listener = Listener()
    pool = BlockPool(1, listener)
    blocks = pool.allocate(1)
    publish(pool, blocks, "a")
    publish(pool, blocks, "a")
    pool.release(blocks)
    assert listener.evicted == []
    pool.allocate(1)
    assert listener.evicted == [b"a"]


def test_a_forgotten_block_is_not_found_and_becomes_free_with_its_last_user():
    listener = Listener()
    pool = BlockPool(2, listener)
    blocks = pool.allocate(1)
    publish(pool, blocks, "a")
    pool.share(blocks)
    pool.forget(blocks)
    pool.release(blocks)
    assert pool.find(b"a") is None
    assert (pool.num_free, pool.num_referenced) == (1, 1)
    pool.release(blocks)
    assert (pool.num_free, pool.num_cached, listener.evicted) == (2, 0, [b"a"])
    pool.check_integrity()


def test_releasing_a_block_more_often_than_it_is_referenced_is_a_bug():
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(blocks)


def test_random_use_keeps_every_block_in_exactly_one_state():
    choose = random.Random(0)
    pool, tables = BlockPool(16), []
    for step in range(2000):
        action = choose.randrange(5)
        if action == 0 and pool.num_available:
            tables.append(pool.allocate(choose.randint(1, pool.num_available)))
        elif action == 1 and tables:
            pool.release(tables.pop(choose.randrange(len(tables))))
        elif action == 2 and tables:
            publish(pool, choose.choice(tables)[:1], f"{step % 24}")
        elif action == 3 and (block := pool.find(f"{step % 24}".encode())) is not None:
            pool.share([block])
            tables.append([block])
        elif action == 4 and tables:
            pool.forget(choose.choice(tables))
        pool.check_integrity()
    for blocks in tables:
        pool.release(blocks)
    pool.check_integrity()
    assert pool.num_available == 16
