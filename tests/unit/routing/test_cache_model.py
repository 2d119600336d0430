"""A modelled cache: red if it holds more than fits, or evicts a beginning before what hangs on it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.routing.cache_model import CacheModel


def test_the_least_recently_used_tail_goes_first():
    cache = CacheModel(max_keys=4)
    assert cache.place([1, 2, 3]) == ([1, 2, 3], [])
    assert cache.place([9]) == ([9], [])
    assert cache.place([1, 8]) == ([8], [3])


prompts = st.tuples(st.integers(0, 3), st.integers(1, 8)).map(
    lambda prompt: [prompt[0] * 100 + depth for depth in range(prompt[1])]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(prompts, max_size=40), st.integers(1, 12))
def test_what_it_says_adds_up_to_what_it_holds(placed, max_keys):
    cache, held = CacheModel(max_keys), set()
    for prompt in placed:
        stored, removed = cache.place(prompt)
        held |= set(stored)
        held -= set(removed)
        assert len(cache) == len(held) <= max_keys
        assert all(key % 100 == 0 or key - 1 in held for key in held)
