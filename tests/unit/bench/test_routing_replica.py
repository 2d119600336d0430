import random

import pytest

from benchmarks.routing.events import EventLoop
from benchmarks.routing.kv_cache import KvCache
from benchmarks.routing.replica import Attempt, Replica, ReplicaSpec

SPEC = ReplicaSpec()


class Watched:
    """A replica alone, and when what happened to its attempts."""

    def __init__(self, spec: ReplicaSpec = SPEC, speed: float = 1.0):
        self.loop = EventLoop()
        self.replica = Replica(spec, self.loop, self, speed)
        self.first_s: dict[int, float] = {}
        self.finished_s: dict[int, float] = {}

    def first_token(self, attempt: Attempt):
        self.first_s[attempt.index] = self.loop.now_s

    def finished(self, attempt: Attempt):
        self.finished_s[attempt.index] = self.loop.now_s

    def send(self, at_s: float, attempt: Attempt):
        self.loop.at(at_s, lambda _: self.replica.submit(attempt))

    def run(self, until_s: float = float("inf")):
        self.loop.run(lambda: self.loop.now_s >= until_s)


def attempt(index: int, num_prompt: int, num_output: int, block_ids: tuple[int, ...] = ()) -> Attempt:
    return Attempt(index, num_prompt, num_output, max_tokens=2 * num_output, block_ids=block_ids)


def prefill_s(num_prompt: int, cached: int = 0) -> float:
    seconds = 0.0
    for start in range(cached, num_prompt, SPEC.chunk_tokens):
        chunk = min(SPEC.chunk_tokens, num_prompt - start)
        seconds += SPEC.base_s + chunk / SPEC.prefill_tokens_per_s * (1 + start / SPEC.attention_tokens)
    return seconds


def test_prompt_alone_takes_its_chunks_and_then_its_decode_steps():
    watched = Watched()
    watched.send(0.0, attempt(0, 5000, 201))
    watched.run()
    assert watched.first_s[0] == pytest.approx(prefill_s(5000))
    step_s = SPEC.base_s + SPEC.sequence_s
    decode_s = 200 * step_s + SPEC.kv_token_s * (200 * 5000 + 200 * 199 / 2)
    assert watched.finished_s[0] - watched.first_s[0] == pytest.approx(decode_s)


def test_waiting_time_under_poisson_arrivals_is_that_of_theory():
    # M/D/1: mean wait = service * load / (2 * (1 - load)).
    service_s, load = prefill_s(SPEC.chunk_tokens), 0.8
    watched, draws, at_s, times = Watched(), random.Random(3), 0.0, []
    for index in range(20_000):
        at_s += draws.expovariate(load / service_s)
        times.append(at_s)
        watched.send(at_s, attempt(index, SPEC.chunk_tokens, 1))
    watched.run()
    mean_s = sum(watched.first_s[index] - at_s for index, at_s in enumerate(times)) / len(times)
    assert mean_s == pytest.approx(service_s * (1 + load / (2 * (1 - load))), rel=0.05)


def test_half_the_speed_takes_twice_the_time():
    slow = Watched(speed=0.5)
    slow.send(0.0, attempt(0, 5000, 2))
    slow.run()
    assert slow.first_s[0] == pytest.approx(2 * prefill_s(5000))


def test_request_that_comes_while_others_decode_waits_for_one_step_only():
    watched = Watched()
    watched.send(0.0, attempt(0, 512, 5000))
    watched.send(10.0, attempt(1, 512, 1))
    watched.run(until_s=20.0)
    step_s = SPEC.base_s + SPEC.sequence_s + SPEC.kv_token_s * 2000
    assert 0 < watched.first_s[1] - 10.0 - prefill_s(512) < 2 * step_s


def test_short_prompts_share_a_chunk():
    watched = Watched()
    for index in range(4):
        watched.send(0.0, attempt(index, 256, 1))
    watched.run()
    first = watched.first_s.pop(0)
    assert set(watched.first_s.values()) == {first + SPEC.base_s + 3 * 256 / SPEC.prefill_tokens_per_s}


def test_second_prompt_with_the_same_beginning_computes_the_rest_alone():
    watched = Watched()
    watched.send(0.0, attempt(0, 4096, 1, tuple(range(8))))
    second = attempt(1, 4096, 1, (0, 1, 2, 3, 4, 5, 90, 91))
    watched.send(100.0, second)
    watched.run()
    assert second.num_cached == 6 * 512
    assert watched.first_s[1] - 100.0 == pytest.approx(prefill_s(4096, cached=6 * 512))


def test_last_token_of_a_fully_cached_prompt_is_computed():
    watched = Watched()
    for index, at_s in enumerate((0.0, 100.0)):
        watched.send(at_s, attempt(index, 1024, 1, (0, 1)))
    watched.run()
    assert watched.first_s[1] - 100.0 == pytest.approx(prefill_s(1024, cached=512))


def test_request_that_does_not_fit_waits_until_memory_is_free():
    watched = Watched(ReplicaSpec(kv_tokens=8 * 512))
    watched.send(0.0, attempt(0, 2048, 1024))
    watched.send(1.0, attempt(1, 2048, 1024))
    watched.run()
    assert watched.first_s[1] > watched.finished_s[0]


def test_load_counts_the_work_that_is_left_and_ends_at_nothing():
    watched = Watched()
    watched.send(0.0, attempt(0, 4096, 100))
    watched.send(0.0, attempt(1, 1000, 100))
    watched.run(until_s=0.05)
    load = watched.replica.load()
    assert (load.num_running, load.num_waiting) == (1, 1)
    assert (load.num_uncached_tokens, load.num_outstanding_tokens) == (4096 + 1000 - 1024, 4096 + 1000 - 1024 + 400)
    watched.run()
    load = watched.replica.load()
    assert (load.num_running, load.num_waiting, load.num_kv_tokens) == (0, 0, 0)
    assert (load.num_uncached_tokens, load.num_outstanding_tokens) == (0, 0)
    assert load.num_free_blocks == load.num_blocks


def test_replica_that_tells_prefills_counts_them_as_waiting():
    watched = Watched(ReplicaSpec(tells_prefills=True))
    watched.send(0.0, attempt(0, 4096, 100))
    watched.send(0.0, attempt(1, 1000, 100))
    watched.run(until_s=0.05)
    load = watched.replica.load()
    assert (load.num_running, load.num_waiting) == (0, 2)
    assert load.num_kv_tokens > 4096


def test_killed_replica_says_what_each_request_had_got_and_is_silent_after():
    watched = Watched()
    watched.send(0.0, attempt(0, 512, 1000))
    watched.send(5.0, attempt(1, 50_000, 10))
    watched.run(until_s=5.5)
    watched.replica.kill()
    (first, num_emitted), (second, none_emitted) = watched.replica.attempts()
    assert (first.index, second.index, none_emitted) == (0, 1, 0)
    assert 300 < num_emitted < 320, "16 ms a step for 5 s"
    watched.run()
    assert watched.finished_s == {}


def test_least_recently_used_end_of_a_chain_is_evicted_first():
    cache = KvCache(num_blocks=6)
    for chain in ([1, 2, 3], [1, 2, 4]):
        num_matched = cache.match(chain)
        cache.enter(3 - num_matched, chain[:num_matched])
        cache.share(chain[num_matched:])
        cache.leave(0, chain)
    assert cache.take_changes() == {1: True, 2: True, 3: True, 4: True}
    cache.enter(3, [])
    assert cache.take_changes() == {3: False}
    assert (cache.match([1, 2, 4]), cache.num_free) == (3, 0)


def test_pinned_blocks_are_never_evicted():
    cache = KvCache(num_blocks=4)
    cache.enter(3, [])
    cache.share([1, 2, 3])
    assert cache.has_room(1, [1, 2, 3]) and not cache.has_room(2, [1, 2, 3])
    cache.enter(1, [])
    assert cache.match([1, 2, 3]) == 3
