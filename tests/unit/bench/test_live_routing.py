import pytest

from benchmarks.live_routing import Slo, figures, prompt_of, sampled, scaled, shared_tokens
from benchmarks.metrics import Outcome
from benchmarks.routing.traces import Arrival, Trace

TRACE = Trace(
    "three",
    30.0,
    (
        Arrival(3.0, 1100, 80, (1, 2)),
        Arrival(6.0, 9000, 80, tuple(range(10, 27))),
        Arrival(9.0, 1100, 8, (1, 3)),
    ),
)


def outcome(ttft_s: float, num_prompt: int = 1000, error: str | None = None) -> Outcome:
    texts = (10 + ttft_s, 10 + ttft_s + 0.09)
    return Outcome(10.0, texts[-1], texts, num_prompt, 2, num_prompt // 4, "length", error)


def test_prompts_share_the_tokens_of_the_blocks_they_share_and_no_more():
    first, third = prompt_of(TRACE.arrivals[0], 0, divide=8), prompt_of(TRACE.arrivals[2], 2, divide=8)
    assert len(first) == len(third) == 1100 // 8
    assert first[:64] == third[:64]
    assert first[64:] != third[64:]
    assert first[128:] != third[128:], "the tail is the request's own"


def test_a_scaled_trace_keeps_order_and_ratios_of_times():
    planned = scaled(TRACE, divide=8, rate_per_s=1.0)
    assert [request.num_output for request in planned] == [10, 10, 2], "at least two, for the time between them"
    assert [request.at_s for request in planned] == pytest.approx([0.0, 0.3, 0.6])


def test_a_sample_holds_whole_conversations_in_order_and_nothing_too_long():
    talk = [Arrival(float(at), 1100, 8, (0, at % 10, at)) for at in range(100)]
    sample = sampled(Trace("talk", 100.0, (*talk, Arrival(100.0, 9000, 8, (0, 3)))), 25, longest=2000, seed=0)
    members = [arrival.block_ids[1] for arrival in sample.arrivals]
    assert len(members) == 30 and all(members.count(member) == 10 for member in members)
    assert [arrival.at_s for arrival in sample.arrivals] == sorted(arrival.at_s for arrival in sample.arrivals)


def test_requests_that_share_nothing_are_no_conversation():
    alone = Trace("alone", 50.0, tuple(Arrival(float(at), 400, 8, ()) for at in range(50)))
    assert len(sampled(alone, 7, longest=2000, seed=0).arrivals) == 7


def test_shared_tokens_are_counted_in_whole_cache_blocks_from_the_beginning():
    assert shared_tokens(scaled(TRACE, divide=8, rate_per_s=1.0)) == 64


def test_a_long_prompt_may_take_longer_before_its_first_token():
    slo = Slo(prefill_tokens_per_s=1000.0, tpot_s=0.1)
    assert slo.is_met(outcome(3.9)) and not slo.is_met(outcome(4.1))
    assert not slo.is_met(outcome(3.9, num_prompt=500))
    assert not slo.is_met(outcome(0.1, error="HTTP 503: overloaded"))


def test_figures_leave_out_the_first_tenth_and_count_failures():
    outcomes = [outcome(100.0)] + [outcome(0.5)] * 8 + [outcome(0.5, error="cut")]
    found = figures(outcomes, Slo(1000.0, 0.1), work=[30.0, 10.0])
    assert found["num_requests"] == 9 and found["num_failed"] == 1
    assert found["ttft_s"]["max"] == 0.5
    assert found["slo_attainment"] == pytest.approx(8 / 9, abs=1e-4)
    assert found["hit_rate"] == 0.25
    assert found["imbalance"] == 1.5
