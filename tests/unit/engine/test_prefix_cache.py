"""Equal tokens under an equal salt are found; nothing else is."""

from engine.block_pool import BlockPool
from engine.prefix_cache import BlockHasher, PrefixCache
from parallel.plan import pack_integers

SIZE = 8


def hashes(token_ids, salt=""):
    hasher = BlockHasher(SIZE, salt)
    hasher.extend(pack_integers(token_ids), len(token_ids) // SIZE)
    return hasher.hashes


def cache_with(token_ids, salt=""):
    """A cache that holds the full blocks of `token_ids`, and those blocks."""
    pool = BlockPool(16)
    cache = PrefixCache(pool, SIZE)
    num_blocks = len(token_ids) // SIZE
    blocks = pool.allocate(num_blocks)
    cache.publish(BlockHasher(SIZE, salt), pack_integers(token_ids), blocks, 0, num_blocks)
    pool.release(blocks)
    return cache, blocks


def test_a_known_prefix_is_found_block_by_block():
    cache, blocks = cache_with(list(range(24)))
    assert cache.match(BlockHasher(SIZE, ""), pack_integers([*range(24), 99])) == blocks
    assert cache.match(BlockHasher(SIZE, ""), pack_integers([*range(20), 99, 99, 99, 99, 99])) == blocks[:2]


def test_the_whole_prompt_is_never_matched():
    cache, blocks = cache_with(list(range(16)))
    assert cache.match(BlockHasher(SIZE, ""), pack_integers(list(range(16)))) == blocks[:1]
    assert cache.match(BlockHasher(SIZE, ""), pack_integers(list(range(8)))) == []


def test_another_salt_finds_nothing():
    cache, _ = cache_with(list(range(24)), salt="tenant-a")
    assert cache.match(BlockHasher(SIZE, "tenant-b"), pack_integers(list(range(24)))) == []
    assert len(cache.match(BlockHasher(SIZE, "tenant-a"), pack_integers(list(range(24))))) == 2


def test_equal_blocks_after_different_beginnings_have_different_hashes():
    assert hashes([1] * 8 + [2] * 8)[1] != hashes([3] * 8 + [2] * 8)[1]


def test_hashes_do_not_depend_on_how_the_tokens_arrived():
    hasher, token_ids = BlockHasher(SIZE, "s"), list(range(100, 148))
    for num_blocks in range(1, 7):
        hasher.extend(pack_integers(token_ids[: num_blocks * SIZE + 3]), num_blocks)
    assert hasher.hashes == hashes(token_ids, "s")


def test_hashes_are_the_same_in_every_process():
    # A router computes them too, in another process: a change of this value is a change of protocol.
    assert hashes(list(range(8)))[0].hex() == "2cbc36ee0b88b176888a0ce11f8d0727"


def test_token_ids_of_different_order_or_width_do_not_collide():
    assert hashes([1, 2, 3, 4, 5, 6, 7, 8]) != hashes([2, 1, 3, 4, 5, 6, 7, 8])
    assert hashes([256, 0, 0, 0, 0, 0, 0, 0]) != hashes([0, 1, 0, 0, 0, 0, 0, 0])


def test_a_disabled_cache_finds_nothing():
    pool = BlockPool(4)
    cache = PrefixCache(pool, SIZE, is_enabled=False)
    blocks = pool.allocate(2)
    cache.publish(BlockHasher(SIZE, ""), pack_integers(range(16)), blocks, 0, 2)
    assert cache.match(BlockHasher(SIZE, ""), pack_integers(list(range(17)))) == []
    pool.release(blocks)
    assert pool.num_free == 4
