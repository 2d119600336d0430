"""The index of prefix keys: red if a group is credited with what it does not hold, or memory can grow without end."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.routing.prefix_index import MAX_RETIRED_BITS, PrefixIndex
from engine.prefix_feed import PrefixNews


def snapshot(stored, sequence=0, epoch=1) -> PrefixNews:
    return PrefixNews(epoch, sequence, True, list(stored), [])


def news(sequence, stored=(), removed=(), epoch=1) -> PrefixNews:
    return PrefixNews(epoch, sequence, False, list(stored), list(removed))


def test_groups_are_found_with_as_much_as_each_holds():
    index = PrefixIndex()
    index.apply("a", snapshot([1, 2, 3, 4]))
    index.apply("b", snapshot([1, 2]))
    index.apply("c", snapshot([9]))
    assert index.find([1, 2, 3, 4, 5]) == {"a": 4, "b": 2}
    assert index.find([1, 2]) == {"a": 2, "b": 2}
    assert index.find([7, 8]) == {}
    assert index.find([]) == {}


def test_removed_keys_are_not_found_any_more():
    index = PrefixIndex()
    index.apply("a", snapshot([1, 2, 3]))
    index.apply("b", snapshot([1, 2, 3]))
    assert index.apply("a", news(1, removed=[3]))
    assert index.find([1, 2, 3]) == {"a": 2, "b": 3}
    assert index.apply("b", news(1, removed=[3, 2, 1]))
    assert index.find([1, 2, 3]) == {"a": 2}
    assert len(index) == 2


def test_news_without_what_came_before_asks_for_a_snapshot():
    index = PrefixIndex()
    assert not index.apply("a", news(1, stored=[1]))
    index.apply("a", snapshot([1, 2], sequence=4))
    assert not index.apply("a", news(6, stored=[3]))
    assert index.find([1, 2, 3]) == {"a": 2}  # what is known stays in use meanwhile
    assert index.apply("a", snapshot([1], sequence=6))
    assert index.apply("a", news(7, stored=[2, 3]))
    assert index.find([1, 2, 3]) == {"a": 3}


def test_news_told_twice_changes_nothing():
    index = PrefixIndex()
    index.apply("a", snapshot([1], sequence=4))
    index.apply("a", news(5, stored=[2]))
    index.apply("a", news(6, removed=[2]))
    assert index.apply("a", news(5, stored=[2]))
    assert index.find([1, 2]) == {"a": 1}


def test_another_epochs_cache_has_nothing_of_the_former():
    index = PrefixIndex()
    index.apply("a", snapshot([1, 2]))
    assert not index.apply("a", news(1, stored=[3], epoch=2))
    assert index.find([1, 2]) == {}


def test_a_forgotten_groups_successor_starts_with_nothing():
    index = PrefixIndex()
    index.apply("a", snapshot([1, 2]))
    index.forget("a")
    index.forget("a")
    index.apply("a", snapshot([]))
    assert index.find([1, 2]) == {}


def test_prompts_on_the_way_count_until_they_are_dropped():
    index = PrefixIndex()
    index.apply("a", snapshot([1]))
    expectation = index.expect("a", [1, 2, 3], num_found=1)
    assert expectation is not None
    assert index.find([1, 2, 3]) == {"a": 3}
    index.apply("a", news(1, stored=[2]))
    expectation.drop()
    expectation.drop()
    assert index.find([1, 2, 3]) == {"a": 2}


def test_a_prompt_that_is_held_already_leaves_nothing_to_expect():
    index = PrefixIndex()
    index.apply("a", snapshot([1, 2]))
    assert index.expect("a", [1, 2], num_found=2) is None
    assert index.expect("stranger", [1, 2], num_found=0) is None


def test_the_least_recently_named_keys_go_first():
    index = PrefixIndex(max_keys=8)
    index.apply("a", snapshot([1, 2, 3, 4]))  # fills a generation
    index.expect("a", [1, 2], num_found=2)  # names two of them again
    index.apply("a", news(1, stored=[5, 6, 7, 8]))
    assert index.find([1, 2]) == {"a": 2}
    assert index.find([3]) == {}
    assert len(index) <= 8


def test_restarts_without_end_do_not_lengthen_masks_or_mix_groups_up():
    index = PrefixIndex()
    for epoch in range(20 * MAX_RETIRED_BITS):
        index.apply("a", snapshot([1, 2, epoch + 10], epoch=epoch))
        index.apply("b", snapshot([1], epoch=epoch))
        assert index.find([1, 2]) == {"a": 2, "b": 1}
        assert index.find([epoch + 9]) == {}
    assert index.num_bits <= 4 * MAX_RETIRED_BITS


keys = st.integers(0, 15).map(lambda length: [1000 + depth for depth in range(length)])
"""Beginnings of one prompt; real keys are chained, so no key is held without those before it."""


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdefgh"), keys))
def test_bisection_finds_what_counting_finds(held):
    index = PrefixIndex()
    for group, stored in held.items():
        index.apply(group, snapshot(stored))
    prompt = [1000 + depth for depth in range(12)]
    assert index.find(prompt) == {group: min(12, len(stored)) for group, stored in held.items() if stored}


class IndexMachine(RuleBasedStateMachine):
    """Any order of news, snapshots, restarts and prompts on the way agrees with one plain set of keys a group."""

    groups = ("a", "b", "c")
    prompts = st.tuples(st.integers(0, 2), st.integers(1, 6)).map(
        lambda prompt: [prompt[0] * 100 + depth for depth in range(prompt[1])]
    )

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[str, set[int]] = {}
        self.told: dict[str, int] = {}
        self.epochs: dict[str, int] = {}
        self.epoch = 0
        self.expectations = []

    @rule(group=st.sampled_from(groups), prompt=prompts)
    def start(self, group, prompt):
        self.epoch += 1
        assert self.index.apply(group, snapshot(prompt, sequence=self.epoch, epoch=self.epoch))
        self.held[group], self.told[group], self.epochs[group] = set(prompt), self.epoch, self.epoch
        self._drop_all()  # a restarted group has none of the prompts that were on the way

    @rule(group=st.sampled_from(groups), prompt=prompts)
    def store(self, group, prompt):
        if group in self.held:
            self._tell(group, prompt, [])

    @rule(group=st.sampled_from(groups), prompt=prompts, depth=st.integers(0, 5))
    def evict(self, group, prompt, depth):
        if group in self.held:
            tail = [key for key in self.held[group] if key // 100 == prompt[0] // 100 and key % 100 >= depth]
            self._tell(group, [], tail)

    @rule(group=st.sampled_from(groups))
    def forget(self, group):
        self.index.forget(group)
        self.held.pop(group, None)
        self._drop_all()

    @rule(group=st.sampled_from(groups), prompt=prompts)
    def expect(self, group, prompt):
        num_found = self.index.find(prompt).get(group, 0)
        expectation = self.index.expect(group, prompt, num_found)
        if expectation is not None:
            self.expectations.append(expectation)
            assert self.index.find(prompt)[group] == len(prompt)

    @rule()
    def drop(self):
        self._drop_all()

    @invariant()
    def nothing_is_found_that_is_not_held_or_expected(self):
        for family in range(3):
            prompt = [family * 100 + depth for depth in range(6)]
            found = self.index.find(prompt)
            for group in self.groups:
                held = self.held.get(group, set())
                num_held = next((depth for depth, key in enumerate(prompt) if key not in held), 6)
                assert found.get(group, 0) >= num_held
                if not self.expectations:
                    assert found.get(group, 0) == num_held

    def _tell(self, group, stored, removed):
        self.told[group] += 1
        assert self.index.apply(group, news(self.told[group], stored, removed, self.epochs[group]))
        self.held[group] |= set(stored)
        self.held[group] -= set(removed)

    def _drop_all(self):
        while self.expectations:
            self.expectations.pop().drop()

    def teardown(self):
        self._drop_all()
        for group in self.groups:
            self.index.forget(group)
        assert self.index.find([0, 1, 2]) == {}


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=40, deadline=None)
