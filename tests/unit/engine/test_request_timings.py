"""Where a request's time went, by the engine's clock: red if a phase is forgotten, counted twice, or told too often."""

import pytest

from engine.stopwatch import MAX_STAYS, Stopwatch
from tests.support.engines import Collector, make_config, make_engine, make_request, run_until_idle
from tests.support.fake_clock import FakeClock
from tests.support.fake_ranks import FakeRankPool


class TimedEngine:
    """An engine whose every step takes a second."""

    def __init__(self, num_blocks=64, **scheduler):
        self.clock = FakeClock(100.0)
        config = make_config(scheduler={"max_steps_under_way": 1, **scheduler})
        self.engine = make_engine(FakeRankPool(), num_blocks, config, clock=self.clock)
        self.sink = Collector()

    def submit(self, name, prompt, max_tokens, **options):
        self.engine.submit(make_request(name, prompt, max_tokens, **options), self.sink)

    def step(self, count=1):
        for _ in range(count):
            self.clock.advance(1.0)
            self.engine.step()

    def finish(self):
        while self.engine.load().num_running or self.engine.load().num_waiting:
            self.step()

    def end(self, name):
        return self.sink.ended[name].timings


def seconds(stay):
    return stay.queued_s, stay.prefill_s, stay.decode_s


def test_a_request_queues_until_it_has_a_row_then_prefills_then_decodes():
    timed = TimedEngine(max_prefill_chunk=8)
    timed.submit("a", range(24), max_tokens=5)
    timed.clock.advance(3.0)
    timed.step(8)
    (stay,) = timed.end("a").stays
    # The first of three chunks is sent at once in the fourth second; each is there a step's end later.
    assert seconds(stay) == (4.0, 2.0, 4.0)
    assert (stay.num_tokens, stay.num_cached_tokens) == (24, 0)


def test_only_the_first_event_and_the_terminal_one_carry_times():
    timed = TimedEngine()
    timed.submit("a", [1, 2, 3], max_tokens=6)
    timed.finish()
    told = [event.timings is not None for event in timed.sink.events["a"]]
    assert told == [True, *[False] * 4, True]
    assert timed.sink.events["a"][0].timings.decode_s == 0


def test_what_was_told_with_the_first_token_does_not_change_afterwards():
    timed = TimedEngine()
    timed.submit("a", [1, 2, 3], max_tokens=6)
    timed.finish()
    first, last = timed.sink.events["a"][0].timings, timed.end("a")
    assert (first.decode_s, last.decode_s) == (0.0, 5.0)


def test_the_times_of_a_preempted_request_are_one_entry_a_stay_and_have_no_gaps():
    timed = TimedEngine(num_blocks=6)
    timed.submit("old", [1] * 15, max_tokens=24)
    timed.submit("young", [2] * 15, max_tokens=24)
    accepted_s = timed.clock.now_s()
    ended_s = {}
    while len(timed.sink.ended) < 2:
        timed.step()
        ended_s |= {name: timed.clock.now_s() for name in timed.sink.ended if name not in ended_s}
    young = timed.end("young")
    assert (timed.end("old").num_preemptions, young.num_preemptions) == (0, 1)
    assert young.total_s == pytest.approx(ended_s["young"] - accepted_s)
    assert young.stays[1].queued_s > 1
    assert young.stays[1].num_tokens > 15
    assert all(stay.decode_s > 0 for stay in young.stays)


def test_waiting_for_kv_blocks_is_told_apart_from_waiting_for_a_row():
    blocked = TimedEngine(num_blocks=4)
    rowless = TimedEngine(max_running=1)
    for timed in (blocked, rowless):
        timed.submit("first", [1] * 20, max_tokens=10)
        timed.step()
        timed.submit("second", [2] * 20, max_tokens=2)
        timed.finish()
        assert timed.end("second").queued_s > 5
    assert blocked.end("second").kv_wait_s == pytest.approx(blocked.end("second").queued_s, abs=1.0)
    assert rowless.end("second").kv_wait_s == 0


def test_tokens_of_a_cached_prefix_are_counted():
    timed = TimedEngine()
    for name in ("a", "b"):
        timed.submit(name, range(20), max_tokens=2)
        timed.finish()
    assert (timed.end("a").num_cached_tokens, timed.end("b").num_cached_tokens) == (0, 16)


def test_a_request_that_is_cancelled_while_it_waits_has_only_queued():
    timed = TimedEngine(max_running=1)
    timed.submit("first", [1] * 8, max_tokens=10)
    timed.step()
    timed.submit("second", [2] * 8, max_tokens=10)
    timed.step(3)
    timed.engine.cancel("second")
    timed.step()
    (stay,) = timed.end("second").stays
    assert seconds(stay) == (4.0, 0.0, 0.0)


def test_a_request_that_is_preempted_again_and_again_has_a_bounded_list_and_right_sums():
    clock = FakeClock()
    watch = Stopwatch(clock.now_s())
    for _ in range(3 * MAX_STAYS):
        watch.queue(clock.now_s(), 0.0)
        clock.advance(1.0)
        watch.start(clock.now_s(), 0.0, 8, 0)
        clock.advance(2.0)
        watch.first_token(clock.now_s())
        clock.advance(3.0)
    timings = watch.read(clock.now_s())
    assert len(timings.stays) == MAX_STAYS
    assert (timings.queued_s, timings.prefill_s, timings.decode_s) == (48.0, 96.0, 144.0)


def test_a_steady_decode_never_reads_the_clock_for_a_token():
    timed = TimedEngine()
    for index in range(8):
        timed.submit(f"r{index}", [index] * 4, max_tokens=50)
    timed.step(3)
    reads = 0
    now_s = timed.clock.now_s

    def counting():
        nonlocal reads
        reads += 1
        return now_s()

    timed.clock.now_s = counting
    timed.engine.step()
    # The deadlines' look, which every step takes, whatever runs.
    assert reads == 1
    timed.clock.now_s = now_s
    run_until_idle(timed.engine)
