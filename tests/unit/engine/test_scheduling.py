"""What goes into a step, in which order, and what happens when blocks run out. Seen through the plans ranks get."""

import pytest

from core.errors import InvalidConfig
from parallel.plan import unpack_integers
from tests.support.engines import Collector, make_config, make_engine, make_request, run_until_idle
from tests.support.fake_clock import FakeClock
from tests.support.fake_ranks import FakeRankPool, expected_tokens


def engine_with(num_blocks=64, **scheduler):
    ranks = FakeRankPool()
    return make_engine(ranks, num_blocks, make_config(scheduler=scheduler)), ranks, Collector()


def num_tokens(plan):
    """Tokens of each row; None for a plan that repeats the one before."""
    if plan.chunks is None:
        return None
    return [1] * len(unpack_integers(plan.decodes)) + [chunk.num_tokens for chunk in plan.chunks]


def test_a_long_prompt_is_computed_in_chunks():
    engine, ranks, sink = engine_with(max_prefill_chunk=10)
    engine.submit(make_request("a", range(25), max_tokens=2), sink)
    run_until_idle(engine)
    assert [num_tokens(plan) for plan in ranks.plans] == [[10], [10], [5], None]


def test_a_step_never_holds_more_than_its_budget():
    engine, ranks, sink = engine_with(max_step_tokens=16, max_running=4, max_prefill_chunk=12)
    for name in "abc":
        engine.submit(make_request(name, range(20), max_tokens=3, cache_salt=name), sink)
    run_until_idle(engine)
    assert num_tokens(ranks.plans[0]) == [12, 4]
    assert max(sum(num_tokens(plan)) for plan in ranks.plans if plan.chunks) == 16


def test_decodes_go_on_while_another_prompt_is_prefilled():
    engine, ranks, sink = engine_with(max_prefill_chunk=8)
    engine.submit(make_request("a", [1, 2], max_tokens=8), sink)
    engine.step()
    engine.submit(make_request("b", range(24), max_tokens=1), sink)
    for _ in range(3):
        engine.step()
    assert [num_tokens(plan) for plan in ranks.plans[1:]] == [[1, 8], [1, 8], [1, 8]]
    assert len(sink.tokens("a")) == 4


def test_steady_decode_repeats_the_plan_without_naming_rows():
    engine, ranks, sink = engine_with()
    for name in "ab":
        engine.submit(make_request(name, [1, 2, 3], max_tokens=5), sink)
    run_until_idle(engine)
    first, *later = ranks.plans
    assert num_tokens(first) == [3, 3]
    assert len(later) == 4
    assert all(plan.chunks is None and not plan.freed and not plan.started for plan in later)


def test_rows_that_go_on_decoding_are_named_in_packed_form_when_one_of_them_ends():
    engine, ranks, sink = engine_with()
    for name, max_tokens in (("a", 9), ("b", 3), ("c", 9)):
        engine.submit(make_request(name, [1, 2, 3], max_tokens=max_tokens), sink)
    run_until_idle(engine)
    (changed,) = [plan for plan in ranks.plans[1:] if plan.chunks is not None]
    assert (unpack_integers(changed.decodes).tolist(), changed.chunks, changed.freed) == ([0, 2], [], [1])


def test_a_row_changes_hands_only_in_a_plan_that_frees_it():
    engine, ranks, sink = engine_with(max_running=1)
    for name in "ab":
        engine.submit(make_request(name, [1, 2, 3], max_tokens=2), sink)
    run_until_idle(engine)
    second = next(plan for plan in ranks.plans[1:] if plan.started)
    assert second.freed == [second.started[0].row] == [0]


def test_lower_priority_numbers_run_first_then_earlier_arrivals():
    engine, _, sink = engine_with(max_running=1)
    for name, priority in (("late", 1), ("first", 0), ("second", 0)):
        engine.submit(make_request(name, [1, 2], max_tokens=2, priority=priority), sink)
    run_until_idle(engine)
    assert list(sink.ended) == ["first", "second", "late"]


def test_a_request_that_does_not_fit_yet_is_not_overtaken():
    engine, _, sink = engine_with(num_blocks=4)
    for name, size in (("running", 20), ("big", 30), ("small", 2)):
        engine.submit(make_request(name, range(size), max_tokens=2, cache_salt=name), sink)
    run_until_idle(engine)
    assert list(sink.ended)[0] == "running"
    assert engine.load().num_preemptions == 0


def test_out_of_blocks_preempts_the_youngest_and_both_finish_with_the_same_tokens():
    engine, _, sink = engine_with(num_blocks=6)
    prompts = {"old": [1] * 15, "young": [2] * 15}
    for name, prompt in prompts.items():
        engine.submit(make_request(name, prompt, max_tokens=24), sink)
    run_until_idle(engine)
    assert engine.load().num_preemptions == 1
    assert list(sink.ended) == ["old", "young"]
    for name, prompt in prompts.items():
        assert sink.tokens(name) == expected_tokens(prompt, 24, 1000)


def test_a_request_of_better_priority_is_kept_although_it_is_younger():
    engine, _, sink = engine_with(num_blocks=6)
    engine.submit(make_request("old", [1] * 15, max_tokens=24, priority=1), sink)
    engine.step()
    engine.submit(make_request("young", [2] * 15, max_tokens=24), sink)
    run_until_idle(engine)
    assert engine.load().num_preemptions > 0
    assert list(sink.ended) == ["young", "old"]


def test_preempted_request_computes_again_only_what_nobody_keeps():
    engine, ranks, sink = engine_with(num_blocks=8)
    for name in ("old", "young"):
        engine.submit(make_request(name, [len(name)] * 23, max_tokens=24), sink)
    run_until_idle(engine)
    restart = [start for plan in ranks.plans for start in plan.started][-1]
    assert engine.load().num_preemptions == 1
    assert restart.num_computed_tokens > 0
    assert len(restart.token_ids) > restart.num_prompt_tokens == 23


def test_a_second_request_with_the_same_prefix_computes_only_the_rest():
    engine, ranks, sink = engine_with()
    engine.submit(make_request("a", range(20), max_tokens=2), sink)
    run_until_idle(engine)
    engine.submit(make_request("b", [*range(20), 7, 8], max_tokens=2), sink)
    run_until_idle(engine)
    start = ranks.plans[2].started[0]
    assert start.num_computed_tokens == 16
    assert [event.num_cached_tokens for event in sink.events["b"]] == [16, 0]
    assert sink.tokens("b") == expected_tokens([*range(20), 7, 8], 2, 1000)


def test_a_prefix_is_shared_while_its_first_owner_still_runs():
    engine, ranks, sink = engine_with()
    engine.submit(make_request("a", range(20), max_tokens=30), sink)
    engine.step()
    engine.submit(make_request("b", range(20), max_tokens=2), sink)
    engine.step()
    assert ranks.plans[1].started[0].block_ids[:2] == ranks.plans[0].started[0].block_ids[:2]


def test_a_block_is_not_shared_before_the_step_that_fills_it_is_committed():
    engine, ranks, sink = engine_with(max_prefill_chunk=8)
    for name in "ab":
        engine.submit(make_request(name, range(20), max_tokens=2), sink)
    engine.step()
    first, second = ranks.plans[0].started
    assert not set(first.block_ids) & set(second.block_ids)


def test_generated_tokens_are_found_by_the_next_turn_of_a_conversation():
    engine, _, sink = engine_with()
    engine.submit(make_request("turn 1", range(10), max_tokens=14), sink)
    run_until_idle(engine)
    engine.submit(make_request("turn 2", [*range(10), *sink.tokens("turn 1"), 5, 6], max_tokens=2), sink)
    run_until_idle(engine)
    assert sink.events["turn 2"][0].num_cached_tokens == 16


def test_requests_of_different_salts_share_nothing():
    engine, _, sink = engine_with()
    for salt in ("tenant-a", "tenant-b"):
        engine.submit(make_request(salt, range(20), max_tokens=2, cache_salt=salt), sink)
        run_until_idle(engine)
    assert engine.load().num_cached_prompt_tokens == 0


def test_two_steps_under_way_give_the_same_tokens_and_never_wait_between_them():
    engine, ranks, sink = engine_with(max_steps_under_way=2)
    engine.submit(make_request("a", range(20), max_tokens=10), sink)
    engine.step()
    assert (len(ranks.plans), sink.calls) == (1, [])
    engine.step()
    assert (len(ranks.plans), len(sink.tokens("a"))) == (2, 1)
    run_until_idle(engine)
    assert sink.tokens("a") == expected_tokens(range(20), 10, 1000)
    # The end by length is foreseen, so not one plan too many was sent.
    assert len(ranks.plans) == 10


def test_a_step_that_cannot_hold_all_decodes_is_refused_as_configuration():
    with pytest.raises(InvalidConfig, match="max_step_tokens=8 is less than max_running=16"):
        make_config(scheduler={"max_step_tokens": 8, "max_running": 16})


def test_admission_leaves_each_running_request_a_block_to_grow_into():
    engine, _, sink = engine_with(num_blocks=4)
    engine.submit(make_request("running", range(20), max_tokens=10), sink)
    engine.step()
    engine.submit(make_request("small", [1, 2], max_tokens=2), sink)
    engine.step()
    assert engine.load().num_free_blocks == 1
    assert (engine.load().num_running, engine.load().num_waiting) == (1, 1)
    run_until_idle(engine)
    assert engine.load().num_preemptions == 0


# Who waits


def engine_at(clock, **scheduler):
    ranks = FakeRankPool()
    return make_engine(ranks, 64, make_config(scheduler=scheduler), clock=clock), Collector()


def order_of_first_tokens(engine, sink):
    run_until_idle(engine)
    return [event.request_id for call in sink.calls for event in call if sink.events[event.request_id][0] is event]


def test_a_request_of_worse_priority_is_not_overtaken_for_ever():
    clock = FakeClock()
    engine, sink = engine_at(clock, max_running=1, priority_step_s=30, max_wait_s=1000)
    engine.submit(make_request("running", [1], max_tokens=3), sink)
    engine.step()
    engine.submit(make_request("patient", [1], priority=2), sink)
    for name, advance in (("soon", 30.0), ("late", 31.0)):
        clock.advance(advance)
        engine.submit(make_request(name, [1], priority=0), sink)
    assert order_of_first_tokens(engine, sink) == ["running", "soon", "patient", "late"]


def test_tenants_take_turns_while_requests_wait():
    engine, sink = engine_at(FakeClock(), max_running=1)
    for name in ("a1", "a2", "a3", "b1", "b2"):
        engine.submit(make_request(name, [1, 2], cache_salt=name[0]), sink)
    assert order_of_first_tokens(engine, sink) == ["a1", "b1", "a2", "b2", "a3"]


def test_a_stream_that_broke_goes_before_requests_that_wait():
    engine, sink = engine_at(FakeClock(), max_running=1)
    for name in "abc":
        engine.submit(make_request(name, [1, 2]), sink)
    engine.submit(make_request("resumed", [1, 2, 3], num_prompt_tokens=2), sink)
    engine.step()
    assert order_of_first_tokens(engine, sink)[0] == "resumed"


def test_streams_that_broke_go_on_in_the_order_in_which_they_fell_silent():
    engine, sink = engine_at(FakeClock(), max_running=1)
    for name, waited_s in (("now", 0.0), ("before", 4.0), ("first", 8.0)):
        engine.submit(make_request(name, [1, 2, 3], num_prompt_tokens=2, waited_s=waited_s), sink)
    assert order_of_first_tokens(engine, sink) == ["first", "before", "now"]
