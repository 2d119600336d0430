"""What an engine says of its work: red if routers would be misled about prefill, memory or speed."""

import random

import msgspec
import pytest

from engine.request import Placement
from engine.step_cost_model import MIN_STEPS
from tests.support.engines import Collector, make_config, make_engine, make_request, run_until_idle, tiny_spec
from tests.support.fake_ranks import FakeRankPool


def engine_of(num_blocks=64, **scheduler):
    ranks = FakeRankPool(vocab_size=1000)
    return make_engine(ranks, num_blocks, make_config(scheduler=scheduler), tiny_spec(vocab_size=1000))


def test_uncached_tokens_shrink_with_every_chunk_and_are_nothing_once_decoding():
    engine, sink = engine_of(max_prefill_chunk=8), Collector()
    engine.submit(make_request("a", range(20), max_tokens=5), sink)
    seen = [engine.load().num_uncached_tokens]
    for _ in range(4):
        engine.step()
        seen.append(engine.load().num_uncached_tokens)
    assert seen == [20, 12, 4, 0, 0]


def test_known_prefix_hits_are_not_uncached():
    engine, sink = engine_of(), Collector()
    assert engine.submit(make_request("a", range(24), max_tokens=1), sink) == Placement(24, 24, 1)
    run_until_idle(engine)
    placement = engine.submit(make_request("b", [*range(16), *range(50, 60)], max_tokens=7), sink)
    assert placement == Placement(10, 26, 7)
    assert engine.load().num_uncached_tokens == 10
    assert engine.submit(make_request("c", range(24), cache_salt="tenant"), sink).num_uncached_tokens == 24


def test_a_resumed_request_places_what_it_still_needs():
    engine, sink = engine_of(), Collector()
    request = make_request("a", range(10), max_tokens=6, num_prompt_tokens=8)
    assert engine.submit(request, sink) == Placement.of(request) == Placement(10, 10, 4)


def test_requests_that_end_at_any_point_leave_nothing_uncached_and_nothing_resident():
    engine, sink = engine_of(num_blocks=8, max_prefill_chunk=8, max_running=3, max_step_tokens=16), Collector()
    for number in range(6):
        engine.submit(make_request(f"r{number}", range(number, number + 14), max_tokens=24), sink)
    for number in range(60):
        engine.step()
        engine.cancel(f"r{number // 10}") if number % 20 == 15 else None
        assert engine.load().num_uncached_tokens >= 0
    run_until_idle(engine)
    load = engine.load()
    assert load.num_preemptions > 0
    assert (load.num_uncached_tokens, load.num_kv_tokens) == (0, 0)


def test_resident_tokens_and_the_step_limit_are_told():
    engine, sink = engine_of(max_step_tokens=100), Collector()
    engine.submit(make_request("a", range(20), max_tokens=10), sink)
    engine.submit(make_request("b", range(10), max_tokens=10), sink)
    engine.step()
    load = engine.load()
    assert (load.num_kv_tokens, load.max_step_tokens) == (30, 100)


class TimedRanks(FakeRankPool):
    """Says that a step took 5 ms, 1 ms more for each row that decodes, and 0.1 ms for each prefill token."""

    def submit(self, plan):
        super().submit(plan)
        chunks = plan.chunks or []
        num_decodes = len(self._previous_rows) - len(chunks)
        seconds = 5e-3 + 1e-3 * num_decodes + 1e-4 * sum(chunk.num_tokens for chunk in chunks)
        self._results[-1] = msgspec.structs.replace(self._results[-1], rank_time_s=seconds)


def test_costs_of_steps_are_learned_from_what_the_steps_did():
    ranks, sink, rng = TimedRanks(vocab_size=1000), Collector(), random.Random(1)
    engine = make_engine(ranks, 400, make_config(), tiny_spec(vocab_size=1000))
    for number in range(60):
        prompt = [rng.randrange(1000) for _ in range(rng.randrange(10, 150))]
        engine.submit(make_request(f"r{number}", prompt, max_tokens=rng.randrange(2, 30)), sink)
        for _ in range(rng.randrange(6)):
            engine.step()
    assert len(ranks.plans) > MIN_STEPS
    for _ in range(20):  # beliefs settle as they are asked for
        engine.step()
        costs = engine.load().step_costs
    assert costs.base_s == pytest.approx(5e-3, rel=0.05)
    assert costs.sequence_s == pytest.approx(1e-3, rel=0.05)
    assert costs.prefill_token_s == pytest.approx(1e-4, rel=0.05)
    assert costs.kv_token_s < 1e-6


def test_costs_are_not_claimed_before_there_were_enough_steps():
    engine, sink = engine_of(), Collector()
    engine.submit(make_request("a", range(20), max_tokens=10), sink)
    run_until_idle(engine)
    assert engine.load().step_costs is None
