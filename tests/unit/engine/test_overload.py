"""Ten times the load gives nearly the goodput of one: played in virtual seconds, with costs learned from steps."""

import random
import statistics

import pytest

from core.errors import QueueFull
from tests.support.engines import make_config, make_engine, make_request, run_until_idle
from tests.support.fake_clock import FakeClock
from tests.support.timed_ranks import TimedRanks

NUM_PROMPT, NUM_OUTPUT, MAX_RUNNING = 64, 16, 8
TTFT_S, TPOT_S, MAX_WAIT_S = 2.0, 0.25, 1.2
SECONDS, WARM_UP_S, REPORT_S = 30.0, 8.0, 0.1


class Player:
    """One engine under an open loop of like requests; what each request got, by name."""

    def __init__(self, **scheduler):
        self.clock = FakeClock()
        limits = {"max_running": MAX_RUNNING, "max_wait_s": MAX_WAIT_S} | scheduler
        ranks = TimedRanks(self.clock, base_s=0.005, prefill_token_s=0.001, sequence_s=0.002)
        self.engine = make_engine(ranks, 200, make_config(scheduler=limits), clock=self.clock)
        self.sent, self.first, self.ended, self.refused = {}, {}, {}, {}
        self.report_at_s = 0.0

    def sink(self, events):
        for event in events:
            self.first.setdefault(event.request_id, self.clock.now_s())
            if event.finish_reason == "length":
                self.ended[event.request_id] = self.clock.now_s()

    def send(self, name, **options):
        self.sent[name] = self.clock.now_s()
        prompt = [*divmod(len(self.sent), 1000), *range(NUM_PROMPT - 2)]
        try:
            self.engine.submit(make_request(name, prompt, NUM_OUTPUT, **options), self.sink)
        except QueueFull as refusal:
            self.refused[name] = refusal

    def step(self):
        if self.clock.now_s() >= self.report_at_s:
            self.engine.load()  # as a load report does: it has the costs of steps be learned
            self.report_at_s = self.clock.now_s() + REPORT_S
        return self.engine.step()

    def play(self, rate, until_s=SECONDS, **options):
        rng = random.Random(1)
        at_s, number = self.clock.now_s(), len(self.sent)
        while at_s < until_s:
            while at_s <= self.clock.now_s():
                self.send(f"{options.get('tenant', 'r')}{number}", **options)
                number += 1
                at_s += rng.expovariate(rate)
            if not self.step():
                self.clock.advance(max(0.0, at_s - self.clock.now_s()))
        run_until_idle(self.engine)

    def goodput(self):
        good = 0
        for name, ended_s in self.ended.items():
            ttft_s = self.first[name] - self.sent[name]
            tpot_s = (ended_s - self.first[name]) / (NUM_OUTPUT - 1)
            good += self.sent[name] >= WARM_UP_S and ttft_s <= TTFT_S and tpot_s <= TPOT_S
        return good / (SECONDS - WARM_UP_S)

    def share_in_time(self):
        admitted = [name for name in self.sent if self.sent[name] >= WARM_UP_S and name not in self.refused]
        return self.goodput() * (SECONDS - WARM_UP_S) / len(admitted)


@pytest.fixture(scope="module")
def capacity():
    """Requests per second that a group completes when it is never out of work."""
    player = Player(max_wait_s=1000)
    for number in range(200):
        player.send(f"r{number}")
    while player.step():
        pass
    return len(player.ended) / player.clock.now_s()


def played(rate, **scheduler):
    player = Player(**scheduler)
    for _ in range(4):  # enough for the costs of steps to be learned
        for _ in range(MAX_RUNNING):
            player.send(f"w{len(player.sent)}")
        while player.step():
            pass
    player.play(rate)
    return player


def test_goodput_at_ten_times_the_load_is_nearly_that_at_one(capacity):
    one, ten = played(capacity), played(10 * capacity)
    assert ten.goodput() >= 0.9 * one.goodput()
    assert ten.goodput() >= 0.8 * capacity
    assert ten.share_in_time() >= 0.95


def test_ranks_that_become_slower_lengthen_no_wait_for_long(capacity):
    player = Player()
    player.play(capacity)
    player.engine._ranks.costs = tuple(4 * cost for cost in player.engine._ranks.costs)
    slow_from_s = player.clock.now_s()
    player.play(capacity, until_s=slow_from_s + 60)
    waits = [player.first[name] - player.sent[name] for name in player.ended if player.sent[name] > slow_from_s + 10]
    assert statistics.median(waits) < 2 * MAX_WAIT_S


def test_without_a_bound_on_the_wait_nothing_is_in_time(capacity):
    assert played(10 * capacity, max_wait_s=1000).goodput() < 0.1 * capacity


def test_who_is_refused_is_told_when_the_queue_will_be_empty(capacity):
    player = played(10 * capacity, max_wait_s=5.0)
    told = [refusal.retry_after_s for name, refusal in player.refused.items() if player.sent[name] >= WARM_UP_S]
    assert statistics.median(told) == pytest.approx(5.0, rel=0.2)
