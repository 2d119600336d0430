"""What the engine promises: refusals at once, one terminal event each, nobody's trouble is another's."""

import threading

import pytest

from core.errors import ContextTooLong, Draining, InvalidRequest, NotReady, QueueFull, RankDied
from engine.config import SchedulerConfig
from engine.step_costs import StepCosts
from parallel.plan import SampledTokens, StepResult
from tests.support.engines import Collector, make_config, make_engine, make_request, run_until_idle, tiny_spec
from tests.support.fake_clock import FakeClock
from tests.support.fake_ranks import FakeRankPool, expected_tokens


@pytest.fixture
def sink():
    return Collector()


def engine_of(ranks=None, **options):
    return make_engine(ranks or FakeRankPool(), **options)


# Ends


def test_max_tokens_ends_a_request_with_length(sink):
    engine = engine_of()
    engine.submit(make_request("a", [1, 2, 3], max_tokens=5), sink)
    run_until_idle(engine)
    assert sink.tokens("a") == expected_tokens([1, 2, 3], 5, 1000)
    assert [event.finish_reason for event in sink.events["a"]] == [None] * 4 + ["length"]


def test_end_of_sequence_ends_a_request_with_stop_and_is_not_part_of_its_output(sink):
    tokens = expected_tokens([1, 2, 3], 5, 1000)
    engine = engine_of(spec=tiny_spec(eos_token_ids=(tokens[3],)))
    engine.submit(make_request("a", [1, 2, 3], max_tokens=5), sink)
    run_until_idle(engine)
    assert sink.tokens("a") == tokens[:3]
    assert (sink.ended["a"].finish_reason, sink.ended["a"].stop_token_id) == ("stop", tokens[3])


def test_ignore_eos_goes_on_past_the_end_of_sequence_but_not_past_stop_token_ids(sink):
    tokens = expected_tokens([1, 2, 3], 5, 1000)
    engine = engine_of(spec=tiny_spec(eos_token_ids=(tokens[1],)))
    engine.submit(make_request("a", [1, 2, 3], max_tokens=5, ignore_eos=True, stop_token_ids=(tokens[3],)), sink)
    run_until_idle(engine)
    assert sink.tokens("a") == tokens[:3]
    assert sink.ended["a"].stop_token_id == tokens[3]


def test_a_request_continued_from_the_middle_gives_the_rest_of_its_tokens(sink):
    tokens = expected_tokens([1, 2, 3], 10, 1000)
    engine = engine_of()
    engine.submit(make_request("a", [1, 2, 3, *tokens[:6]], max_tokens=10, num_prompt_tokens=3), sink)
    run_until_idle(engine)
    assert sink.tokens("a") == tokens[6:]


@pytest.mark.parametrize("depth", [1, 2])
def test_cancelling_a_running_request_frees_its_blocks_within_a_step(sink, depth):
    engine = engine_of(config=make_config(scheduler={"max_steps_under_way": depth}))
    engine.submit(make_request("a", range(20), max_tokens=100), sink)
    for _ in range(5):
        engine.step()
    engine.cancel("a")
    engine.step()
    load = engine.load()
    assert sink.ended["a"].finish_reason == "cancelled"
    assert load.num_free_blocks + load.num_cached_blocks == load.num_blocks
    run_until_idle(engine)
    assert load.num_running == load.num_outstanding_tokens == 0


def test_cancelling_a_waiting_request_ends_it_without_running_it(sink):
    engine = engine_of(config=make_config(scheduler={"max_running": 1}))
    for name in "ab":
        engine.submit(make_request(name, [1, 2], max_tokens=3), sink)
    engine.step()
    engine.cancel("b")
    run_until_idle(engine)
    assert (sink.ended["b"].finish_reason, sink.tokens("b")) == ("cancelled", [])


def test_cancelling_an_unknown_or_ended_request_is_ignored(sink):
    engine = engine_of()
    engine.submit(make_request("a", [1], max_tokens=1), sink)
    run_until_idle(engine)
    engine.cancel("a")
    engine.cancel("never seen")
    assert engine.step() is False


def test_a_deadline_ends_running_and_waiting_requests_alike(sink):
    clock = FakeClock()
    engine = engine_of(clock=clock, config=make_config(scheduler={"max_running": 1}))
    engine.submit(make_request("running", [1, 2], max_tokens=50, deadline_s=5.0), sink)
    engine.submit(make_request("waiting", [1, 2], max_tokens=50, deadline_s=4.0), sink)
    engine.step()
    clock.advance(5.0)
    run_until_idle(engine)
    assert {name: event.error.code for name, event in sink.ended.items()} == {
        "running": "deadline_exceeded",
        "waiting": "deadline_exceeded",
    }
    assert "while waiting, 0 tokens generated" in sink.ended["waiting"].error.message


def test_a_waiting_request_that_can_no_longer_meet_its_deadline_is_ended_and_not_computed(sink):
    clock, ranks = FakeClock(), FakeRankPool()
    engine = engine_of(ranks, config=make_config(scheduler={"max_running": 1}), clock=clock)
    engine._estimates.step_costs = StepCosts(0.0, prefill_token_s=1.0, sequence_s=0.0, kv_token_s=0.0)
    engine.submit(make_request("long", [1], max_tokens=100), sink)
    engine.step()
    engine.submit(make_request("a", [1] * 10, deadline_s=30.0), sink)  # ten seconds of work
    clock.advance(20.5)
    engine.step()
    assert "can no longer be met" in sink.ended["a"].error.message
    assert engine.load().num_prompt_tokens == 1


def test_a_running_request_has_until_its_deadline(sink):
    clock = FakeClock()
    engine = engine_of(clock=clock)
    engine._estimates.step_costs = StepCosts(0.0, prefill_token_s=1.0, sequence_s=0.0, kv_token_s=0.0)
    engine.submit(make_request("a", [1] * 10, max_tokens=50, deadline_s=30.0), sink)
    engine.step()
    clock.advance(29.0)
    engine.step()
    assert "a" not in sink.ended
    clock.advance(1.0)
    engine.step()
    assert "passed while running" in sink.ended["a"].error.message


def test_one_row_that_fails_ends_only_its_own_request(sink):
    ranks = FakeRankPool(fails_row=lambda step, row: step == 3 and row == 0)
    engine = engine_of(ranks)
    for name in "ab":
        engine.submit(make_request(name, [1, 2, 3], max_tokens=6), sink)
    run_until_idle(engine)
    assert sink.ended["a"].error.message == "logits are not finite"
    assert sink.tokens("b") == expected_tokens([1, 2, 3], 6, 1000)


def test_blocks_of_a_request_whose_logits_broke_are_never_found_again(sink):
    prompt = list(range(40))
    engine = engine_of(FakeRankPool(fails_row=lambda step, row: step == 3))
    engine.submit(make_request("broken", prompt, max_tokens=6), sink)
    run_until_idle(engine)
    assert sink.ended["broken"].error is not None
    assert engine.load().num_cached_blocks == 0
    engine.submit(make_request("next", prompt, max_tokens=6), sink)
    run_until_idle(engine)
    assert engine.load().num_cached_prompt_tokens == 0
    assert sink.tokens("next") == expected_tokens(prompt, 6, 1000)


def test_rank_failure_ends_what_was_computed_with_that_error_and_hands_back_the_rest_unaccused(sink):
    engine = engine_of(FakeRankPool(dies_at_step=3), config=make_config(scheduler={"max_running": 1}))
    for name in "ab":
        engine.submit(make_request(name, [1, 2], max_tokens=20), sink)
    failure = engine.run()
    assert isinstance(failure, RankDied)
    assert {name: event.error.code for name, event in sink.ended.items()} == {"a": "rank_died", "b": "not_ready"}
    with pytest.raises(NotReady, match="rank 0 died at step 3"):
        engine.submit(make_request("c", [1]), sink)


def test_a_result_that_does_not_answer_the_plan_fails_the_replica(sink):
    class ForgetfulRanks(FakeRankPool):
        def collect(self, timeout_s):
            result = super().collect(timeout_s)
            return StepResult(result.step, SampledTokens(), result.rank_time_s)

    engine = engine_of(ForgetfulRanks())
    engine.submit(make_request("a", [1, 2]), sink)
    failure = engine.run()
    assert "asked for rows [0]" in str(failure)
    assert sink.ended["a"].error.code == "replica_failed"


def test_close_ends_accepted_requests_even_if_the_loop_never_ran(sink):
    engine = engine_of()
    engine.submit(make_request("a", [1, 2]), sink)
    engine.close(Draining("told to"))
    assert sink.ended["a"].error.message == "told to"
    assert engine.run() is None


def test_a_bug_in_the_engine_thread_still_ends_every_request(sink):
    class BuggyRanks(FakeRankPool):
        def collect(self, timeout_s):
            raise KeyError("bug")

    engine = engine_of(BuggyRanks())
    engine.submit(make_request("a", [1, 2]), sink)
    with pytest.raises(KeyError):
        engine.run()
    assert sink.ended["a"].error.code == "replica_failed"


# Refusals


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (make_request("a", []), "the prompt has no tokens"),
        (make_request("a", [1, 1000]), "token id 1000 in prompt is out of range; the vocabulary has 0 to 999"),
        (make_request("a", [1, -1]), "token id -1 in prompt"),
        (make_request("a", [1], num_prompt_tokens=2), "num_prompt_tokens=2 is out of range"),
        (make_request("a", [1], num_prompt_tokens=0), "num_prompt_tokens=0 is out of range"),
        (make_request("a", [1], stop_token_ids=(5, 1000)), "token id 1000 in stop_token_ids"),
        (make_request("a", [1], logit_bias={2000: 1.0}), "token id 2000 in logit_bias"),
        (make_request("a", [1], deadline_s=0.0), "deadline_s=0.0 is out of range"),
        (make_request("a", [1], deadline_s=float("nan")), "deadline_s=nan is out of range"),
        (make_request("a", [1, 2, 3, 4], max_tokens=2, num_prompt_tokens=2), "nothing is left to generate"),
    ],
)
def test_wrong_requests_are_refused_at_once(sink, request_, message):
    engine = engine_of()
    with pytest.raises(InvalidRequest, match=message):
        engine.submit(request_, sink)
    assert engine.step() is False
    assert not sink.calls


def test_prompt_and_output_over_the_context_are_refused_with_the_numbers(sink):
    with pytest.raises(ContextTooLong, match=r"200 tokens and max_tokens=57, together 257; the context holds 256"):
        engine_of().submit(make_request("a", range(200), max_tokens=57), sink)


def test_a_request_that_the_pool_can_never_hold_is_refused_with_the_numbers(sink):
    engine = engine_of(num_blocks=4)
    with pytest.raises(ContextTooLong, match=r"34 tokens .* need 5 KV blocks of 8 tokens; the pool has 4"):
        engine.submit(make_request("a", range(30), max_tokens=4), sink)
    engine.submit(make_request("b", range(30), max_tokens=3), sink)
    run_until_idle(engine)
    assert len(sink.tokens("b")) == 3


def test_a_full_queue_refuses_and_accepts_again_when_something_ended(sink):
    engine = engine_of(config=make_config(scheduler={"max_running": 1, "max_waiting": 1}))
    for name in "ab":
        engine.submit(make_request(name, [1, 2], max_tokens=2), sink)
    with pytest.raises(QueueFull) as refusal:
        engine.submit(make_request("c", [1, 2]), sink)
    assert refusal.value.retry_after_s is not None
    run_until_idle(engine)
    engine.submit(make_request("c", [1, 2]), sink)


def test_an_id_in_use_is_refused_and_free_again_after_its_end(sink):
    engine = engine_of()
    engine.submit(make_request("a", [1, 2], max_tokens=2), sink)
    with pytest.raises(InvalidRequest, match="'a' is in use"):
        engine.submit(make_request("a", [1, 2]), sink)
    run_until_idle(engine)
    engine.submit(make_request("a", [1, 2]), lambda events: None)


def test_draining_refuses_new_requests_and_finishes_accepted_ones(sink):
    engine = engine_of()
    engine.submit(make_request("a", [1, 2], max_tokens=5), sink)
    engine.drain()
    with pytest.raises(Draining):
        engine.submit(make_request("b", [1, 2]), sink)
    run_until_idle(engine)
    assert sink.ended["a"].finish_reason == "length"


# Sinks


def test_every_sink_gets_its_events_of_a_step_in_one_call():
    engine, first, second = engine_of(), Collector(), Collector()
    for name in ("a", "b"):
        engine.submit(make_request(name, [1, 2], max_tokens=3), first)
    engine.submit(make_request("c", [1, 2], max_tokens=3), second)
    engine.step()
    assert [event.request_id for event in first.calls[0]] == ["a", "b"]
    assert [event.request_id for event in second.calls[0]] == ["c"]
    assert len(first.calls) == len(second.calls) == 1


def test_a_sink_that_raises_loses_its_own_requests_only(sink, caplog):
    def broken(events):
        raise RuntimeError("consumer bug")

    engine = engine_of()
    engine.submit(make_request("theirs", [1, 2], max_tokens=5), broken)
    engine.submit(make_request("theirs too", [1, 2], max_tokens=5), broken)
    engine.submit(make_request("ours", [1, 2], max_tokens=5), sink)
    run_until_idle(engine)
    assert sink.tokens("ours") == expected_tokens([1, 2], 5, 1000)
    assert engine.load().num_running == engine.load().num_waiting == 0
    assert caplog.text.count("event sink failed") == 1


def test_tokens_are_told_when_the_next_plan_is_on_its_way_so_that_no_rank_waits_for_a_consumer():
    happened = []

    class WatchedRanks(FakeRankPool):
        def submit(self, plan):
            happened.append(f"plan {plan.step}")
            super().submit(plan)

    engine = engine_of(WatchedRanks())

    def sink(events):
        happened.extend(f"token {len(happened)}" for _ in events)
        if list(events)[-1].is_terminal:
            engine.close(RankDied("over"))

    engine.submit(make_request("a", [1, 2], max_tokens=3), sink)
    engine.run()
    assert [what.split()[0] for what in happened] == ["plan", "plan", "token", "plan", "token", "token"]


def test_a_sink_may_submit_and_cancel():
    engine, collected = engine_of(), Collector()

    def chain(events):
        collected(events)
        if list(events)[-1].request_id == "a":
            engine.cancel("a")
            engine.submit(make_request("b", [1], max_tokens=2), collected)

    engine.submit(make_request("a", [1, 2], max_tokens=50), chain)
    engine.step()
    run_until_idle(engine)
    assert collected.ended["a"].finish_reason == "cancelled"
    assert collected.ended["b"].finish_reason == "length"


# Load


def test_load_counts_what_is_left_to_do(sink):
    engine = engine_of(config=make_config(scheduler={"max_running": 1}))
    for name in "ab":
        engine.submit(make_request(name, range(20), max_tokens=10, cache_salt=name), sink)
    assert engine.load().num_outstanding_tokens == 60
    engine.step()
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.num_outstanding_tokens) == (1, 1, 40)
    assert load.num_free_blocks == load.num_blocks - 3
    run_until_idle(engine)
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.num_outstanding_tokens) == (0, 0, 0)
    assert (load.num_generated_tokens, load.num_prompt_tokens) == (20, 40)


def test_stats_say_where_the_leaders_time_goes(sink):
    engine = engine_of()
    engine.submit(make_request("a", [1, 2], max_tokens=5), sink)
    run_until_idle(engine)
    assert engine.stats.num_steps == 5
    assert engine.stats.leader_us_per_step > 0
    assert "5 steps" in engine.stats.describe()


# Threads


def test_an_idle_engine_sleeps_until_it_is_woken_and_ends_when_closed():
    engine, sink, done = engine_of(), Collector(), threading.Event()

    def notify(events):
        sink(events)
        if sink.ended:
            done.set()

    thread = threading.Thread(target=engine.run)
    thread.start()
    num_idle_steps = engine.stats.num_steps
    for name in ("a", "b", "c"):
        done.clear()
        sink.events.clear()
        engine.submit(make_request(name, [1, 2, 3], max_tokens=4), notify)
        assert done.wait(5), "the engine was not woken"
    engine.close(RankDied("over"))
    thread.join(5)
    assert not thread.is_alive()
    assert num_idle_steps == 0


def test_an_idle_engine_finds_that_a_rank_died(monkeypatch):
    monkeypatch.setattr("engine.engine.IDLE_CHECK_S", 0.001)
    ranks = FakeRankPool(dies_at_step=3)
    assert isinstance(engine_of(ranks).run(), RankDied)
    assert [plan.chunks for plan in ranks.plans] == [[], [], []]


def test_signs_of_life_between_requests_change_no_tokens(monkeypatch):
    monkeypatch.setattr("engine.engine.IDLE_CHECK_S", 0.001)
    engine, sink, ended = engine_of(), Collector(), threading.Semaphore(0)

    def notify(events):
        sink(events)
        if list(events)[-1].is_terminal:
            ended.release()

    thread = threading.Thread(target=engine.run)
    thread.start()
    for number in range(20):
        engine.submit(make_request(f"r{number}", [1, 2, number], max_tokens=3), notify)
        assert ended.acquire(timeout=5)
        threading.Event().wait(0.002)
    engine.close(RankDied("over"))
    thread.join(5)
    assert [sink.tokens(f"r{number}") for number in range(20)] == [
        expected_tokens([1, 2, number], 3, 1000) for number in range(20)
    ]


def test_many_threads_submit_and_cancel_and_every_request_ends_once():
    engine = engine_of(config=make_config(scheduler={"max_running": 8, "max_waiting": 1000}), num_blocks=40)
    sinks = [Collector() for _ in range(4)]

    def client(index):
        for number in range(50):
            name = f"{index}-{number}"
            engine.submit(make_request(name, [index, number], max_tokens=1 + number % 7), sinks[index])
            if number % 3 == 0:
                engine.cancel(name)

    loop = threading.Thread(target=engine.run)
    clients = [threading.Thread(target=client, args=(index,)) for index in range(4)]
    loop.start()
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(30)
    engine.close(RankDied("over"))
    loop.join(30)
    assert [len(sink.ended) for sink in sinks] == [50] * 4


@pytest.mark.parametrize(
    ("asked", "devices", "depth"),
    [
        ("auto", ["cpu"], 1),
        ("auto", ["cuda", "cuda"], 2),
        (1, ["cuda"], 1),
        (2, ["cpu"], 2),
        ("auto", ["cuda", "cpu"], 1),
    ],
)
def test_one_step_ahead_is_the_default_where_the_next_step_can_be_launched_meanwhile(asked, devices, depth):
    assert SchedulerConfig(max_steps_under_way=asked).settled(devices).max_steps_under_way == depth


@pytest.mark.parametrize(
    ("asked", "max_running", "devices", "tokens"),
    [(None, 64, ["cpu"], 256), (None, 300, ["cpu"], 300), (None, 64, ["cuda"], 2048), (100, 64, ["cuda", "cuda"], 100)],
)
def test_a_step_on_a_cpu_is_short_unless_told_otherwise(asked, max_running, devices, tokens):
    config = SchedulerConfig(max_step_tokens=asked, max_running=max_running).settled(devices)
    assert config.max_step_tokens == config.step_tokens == tokens
