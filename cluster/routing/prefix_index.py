"""Which groups hold which beginnings of prompts: {prefix key: bitmask of groups}.

A prefix key stands for a whole beginning, and caches evict tails before the prefixes they hang on. So along the keys of
a prompt the set of groups only shrinks, and bisection finds where it does. One flat dict takes about 90 bytes a key,
however many groups hold it; a tree of nodes, as SGLang's and Ray's routers keep, takes 500.

What groups hold is known from their own news (`apply`). What they are about to hold is known from prompts on the way to
them (`expect`): news comes only after a prompt was computed, and a burst with one prefix is over by then.

Keys live in two generations. A key that news or a placed prompt names again moves to the young one; when that is full,
it becomes the old one, and the old one goes. That is a rough LRU with no list to keep. It also gives back the bits of
groups that are gone: a bit is free once both generations were replaced, without a sweep over millions of keys.
"""

from collections.abc import Iterable, Sequence

from engine.prefix_feed import PrefixNews

MAX_RETIRED_BITS = 64
"""Bits of groups gone, past which a generation ends early, so that masks stay short however often groups restart."""


class Expectation:
    """A prompt on its way to a group. To be dropped once, when its request has left the group."""

    def __init__(self, expected: dict[int, int], bit: int, keys: Sequence[int]) -> None:
        self._expected = expected
        self._bit = bit
        self._keys = keys
        for key in keys:
            others = expected.setdefault(key, bit)
            if others != bit:
                expected[key] = others | bit

    def drop(self) -> None:
        """Expect these keys no longer; what news has told meanwhile stays. Idempotent."""
        for key in self._keys:
            others = self._expected.pop(key, 0) & ~self._bit
            if others:
                self._expected[key] = others
        self._keys = ()


class _Holder:
    """One group of one cache epoch: its bit, and the last of its news."""

    def __init__(self, bit: int, news: PrefixNews) -> None:
        self.bit = bit
        self.epoch = news.epoch
        self.sequence = news.sequence


class PrefixIndex:
    """Prefix keys and who holds them. Used by one thread."""

    def __init__(self, max_keys: int = 2_000_000) -> None:
        """`max_keys`: most keys to remember."""
        self._max_generation = max(1, max_keys // 2)
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._expected: dict[int, int] = {}
        self._bits = _Bits()
        self._holders: dict[str, _Holder] = {}

    def __len__(self) -> int:
        """Keys that some group is known to hold."""
        return len(self._young) + len(self._old)

    @property
    def num_bits(self) -> int:
        """Bits of the longest mask."""
        return self._bits.num_bits

    def apply(self, group_id: str, news: PrefixNews) -> bool:
        """Take a group's news; False if some before it was missed, so that only a snapshot can help.

        After a gap what was known stays in use until the snapshot comes; of another epoch's cache nothing stays.
        """
        holder = self._holders.get(group_id)
        if holder is not None and holder.epoch != news.epoch:
            self.forget(group_id)
            holder = None
        if news.is_snapshot:
            self.forget(group_id)
            holder = self._holders[group_id] = _Holder(self._bits.take(group_id), news)
        elif holder is None or news.sequence > holder.sequence + 1:
            return False
        elif news.sequence <= holder.sequence:
            return True  # told before
        holder.sequence = news.sequence
        self._remove(holder.bit, news.removed)
        self._store(holder.bit, news.stored)
        if self._bits.num_retired >= MAX_RETIRED_BITS:
            self._end_generation()
        return True

    def forget(self, group_id: str) -> None:
        """Know nothing of a group any more. Takes no time, whatever the group holds. Idempotent."""
        holder = self._holders.pop(group_id, None)
        if holder is not None:
            self._bits.retire(holder.bit)

    def find(self, keys: Sequence[int]) -> dict[str, int]:
        """Return how many of `keys`, from the first on, each group holds or will hold; those with none are left out."""
        found: dict[str, int] = {}
        # Pairs of depths, and who holds the prompt that far. All hold nothing of it, none holds more than there is.
        stretches = [(-1, self._bits.alive, len(keys), 0)]
        young, old, expected = self._young.get, self._old.get, self._expected.get
        while stretches:
            low, low_mask, high, high_mask = stretches.pop()
            if low_mask == high_mask:
                continue
            if high - low > 1:
                middle = (low + high) // 2
                key = keys[middle]
                mask = (young(key) or old(key, 0)) | expected(key, 0)
                mask = mask & low_mask | high_mask
                stretches += [(low, low_mask, middle, mask), (middle, mask, high, high_mask)]
            elif high:
                for group_id in self._bits.groups(low_mask ^ high_mask):
                    found[group_id] = high
        return found

    def expect(self, group_id: str, keys: Sequence[int], num_found: int) -> Expectation | None:
        """Count `keys` as held by a group from now until dropped; `num_found` of them it was found to hold already.

        Prompts that share a beginning on the way to one group share the first one's expectation of it. Should that end
        early, the others' credit is back with the group's next news.
        """
        self._touch(keys[:num_found])
        holder = self._holders.get(group_id)
        if holder is None or num_found >= len(keys):
            return None
        return Expectation(self._expected, holder.bit, keys[num_found:])

    def _store(self, bit: int, keys: Iterable[int]) -> None:
        young, old, alive = self._young, self._old, self._bits.alive
        for key in keys:
            mask = young.get(key) or old.pop(key, 0) & alive
            young[key] = mask | bit if mask else bit
            if len(young) >= self._max_generation:
                self._end_generation()
                young, old = self._young, self._old

    def _remove(self, bit: int, keys: Iterable[int]) -> None:
        others = self._bits.alive & ~bit
        for key in keys:
            generation = self._young if key in self._young else self._old
            mask = generation.get(key, 0) & others
            if mask:
                generation[key] = mask
            else:
                generation.pop(key, None)

    def _touch(self, keys: Iterable[int]) -> None:
        if not self._old:
            return
        for key in keys:
            mask = self._old.pop(key, 0) & self._bits.alive
            if mask:
                self._young[key] = mask
        if len(self._young) >= self._max_generation:
            self._end_generation()

    def _end_generation(self) -> None:
        self._old = self._young
        self._young = {}
        self._bits.end_generation()


class _Bits:
    """Which bit stands for which group. A bit is not used again while a key of either generation may carry it."""

    def __init__(self) -> None:
        self.alive = 0
        """The bits of all groups that are known."""
        self._groups: list[str] = []
        self._free: list[int] = []
        self._retired: list[int] = []
        self._fading: list[int] = []

    @property
    def num_bits(self) -> int:
        """Bits ever in use at one time."""
        return len(self._groups)

    @property
    def num_retired(self) -> int:
        """Bits given back since the last generation ended."""
        return len(self._retired)

    def take(self, group_id: str) -> int:
        """Return a bit that no key carries; it stands for the group until retired."""
        if self._free:
            index = self._free.pop()
        else:
            index = len(self._groups)
            self._groups.append("")
        self._groups[index] = group_id
        bit = 1 << index
        self.alive |= bit
        return bit

    def retire(self, bit: int) -> None:
        """Have `bit` stand for no group from now on."""
        self.alive &= ~bit
        self._retired.append(bit.bit_length() - 1)

    def end_generation(self) -> None:
        """Note that no key carries a bit any more that was retired before the last generation ended."""
        self._free += self._fading
        self._fading = self._retired
        self._retired = []

    def groups(self, mask: int) -> Iterable[str]:
        """Yield the group of each bit in `mask`."""
        while mask:
            lowest = mask & -mask
            yield self._groups[lowest.bit_length() - 1]
            mask ^= lowest
