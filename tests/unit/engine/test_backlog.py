"""Who would wait too long is refused at once, and is told when to come back."""

import pytest

from core.errors import QueueFull
from engine.backlog import Backlog
from engine.config import SchedulerConfig
from engine.estimates import Estimates, MovingMean
from engine.step_costs import StepCosts
from tests.support.engines import make_request
from tests.support.fake_clock import FakeClock

COSTS = StepCosts(base_s=0.0, prefill_token_s=0.001, sequence_s=0.01, kv_token_s=0.0)
"""1000 prompt tokens in a second, 100 output tokens."""


def backlog_of(costs=COSTS, clock=None, **config):
    estimates = Estimates()
    estimates.step_costs = costs
    return Backlog(SchedulerConfig.parse({"max_running": 2} | config, "test"), estimates, clock or FakeClock())


def ask(backlog, num_prompt=100, max_tokens=100, name="r", **options):
    """Let a request in that generates all of its tokens; return its claim. Raises QueueFull."""
    request = make_request(name, [1] * num_prompt, max_tokens, ignore_eos=True, **options)
    return backlog.enter(request, max_tokens, backlog.check(request, max_tokens))


def fill(backlog, count, **options):
    return [ask(backlog, **options) for _ in range(count)]


def start(backlog, claims):
    for claim in claims:
        backlog.start(claim, claim.num_uncached_tokens, 0)


def test_while_rows_are_free_only_prefills_are_waited_for():
    backlog = backlog_of(max_running=8)
    fill(backlog, 3)
    assert backlog.wait_s() == pytest.approx(0.3)


def test_once_rows_are_taken_outputs_are_waited_for_too():
    clock = FakeClock()
    backlog = backlog_of(max_running=2, clock=clock)
    claims = fill(backlog, 2)
    start(backlog, claims)
    for claim in claims:
        clock.advance(0.1)
        backlog.end_prefill(claim)
    fill(backlog, 3)
    # Three prefills of 0.1 s, and four requests must end, each of which takes 100 tokens.
    assert backlog.wait_s() == pytest.approx(0.3 + 4 * 1.0)


def test_a_prefill_is_waited_for_until_its_first_token():
    backlog = backlog_of(max_running=8)
    (claim,) = fill(backlog, 1, num_prompt=500)
    backlog.start(claim, 500, 200)
    assert backlog.wait_s() == pytest.approx(0.3)
    backlog.end_prefill(claim)
    assert backlog.wait_s() == 0.0


def test_a_request_that_would_wait_too_long_is_refused_and_told_how_long_the_queue_is():
    backlog = backlog_of(max_running=1, max_wait_s=5.0)
    start(backlog, fill(backlog, 1))
    with pytest.raises(QueueFull, match=r"max_wait_s=5") as refusal:
        fill(backlog, 100)
    assert 5.0 < refusal.value.retry_after_s < 8.0


def test_the_whole_queue_counts_for_what_is_reported_whoever_waits_in_it():
    backlog = backlog_of(max_running=8)
    for tenant in "abc":
        fill(backlog, 1, cache_salt=tenant)
    assert backlog.wait_s() == pytest.approx(0.3)


def test_what_a_refused_caller_is_told_is_bounded():
    backlog = backlog_of(max_running=1, max_wait_s=1000.0)
    assert backlog.full("x").retry_after_s == 1.0
    fill(backlog, 200)
    assert backlog.full("x").retry_after_s == 60.0


def test_without_known_costs_only_tokens_bound_the_queue():
    backlog = backlog_of(costs=None, max_waiting_tokens=1000)
    fill(backlog, 5)
    with pytest.raises(QueueFull, match="1000 tokens wait to be computed and the request adds 200"):
        ask(backlog)


def test_one_request_over_the_token_bound_may_wait_alone():
    backlog = backlog_of(max_waiting_tokens=100)
    ask(backlog)
    with pytest.raises(QueueFull):
        ask(backlog)


def test_a_request_that_cannot_meet_its_deadline_is_refused():
    backlog = backlog_of(max_running=8)
    fill(backlog, 5)  # 0.5 s before it; itself 0.1 s and 100 tokens of 0.01 s
    with pytest.raises(QueueFull, match=r"miss its deadline of 1.5 s"):
        ask(backlog, deadline_s=1.5)
    ask(backlog, deadline_s=1.7)


def test_a_tenant_that_floods_the_queue_is_refused_while_others_are_let_in():
    backlog = backlog_of(max_running=1, max_wait_s=5.0)
    start(backlog, fill(backlog, 1, cache_salt="flood"))
    with pytest.raises(QueueFull):
        fill(backlog, 100, cache_salt="flood")
    with pytest.raises(QueueFull):
        ask(backlog, cache_salt="flood")
    assert len(fill(backlog, 2, cache_salt="other")) == 2
    with pytest.raises(QueueFull):
        fill(backlog, 10, cache_salt="other")


@pytest.mark.parametrize("costs", [None, COSTS])
def test_nobody_is_let_in_behind_one_who_has_waited_too_long_whatever_was_predicted(costs):
    clock = FakeClock()
    backlog = backlog_of(costs, clock, max_running=8, max_wait_s=5.0)
    claims = fill(backlog, 2)
    clock.advance(6.0)
    with pytest.raises(QueueFull, match="about 6 s"):
        ask(backlog)
    ask(backlog, cache_salt="another")
    backlog.leave(claims[0])
    backlog.start(claims[1], 100, 0)
    ask(backlog)


def test_better_priorities_wait_for_their_like_alone():
    backlog = backlog_of(max_running=1, max_wait_s=5.0)
    with pytest.raises(QueueFull):
        fill(backlog, 100, priority=1)
    ask(backlog, priority=0)


def test_a_stream_that_broke_is_let_in_however_many_wait():
    backlog = backlog_of(max_running=1, max_wait_s=5.0, max_waiting_tokens=1000)
    with pytest.raises(QueueFull):
        fill(backlog, 100)
    ask(backlog, num_prompt=100, num_prompt_tokens=90)


def test_nothing_is_left_of_requests_that_ended_in_any_state():
    backlog = backlog_of(max_running=4)
    claims = fill(backlog, 4, cache_salt="a") + fill(backlog, 4, cache_salt="b")
    start(backlog, claims[:4])
    backlog.end_prefill(claims[0])
    backlog.put_back(claims[0])
    backlog.put_back(claims[1])
    for claim in claims:
        backlog.leave(claim)
    assert backlog.wait_s() == 0.0
    assert not backlog._waiting_by_tenant and backlog._num_running == 0


def test_predictions_are_corrected_by_how_they_turned_out():
    clock = FakeClock()
    backlog = backlog_of(max_running=8, max_wait_s=1000.0, clock=clock)
    for _ in range(300):
        first, second = fill(backlog, 2, num_prompt=1000)  # the second waits 1 s, by the costs
        for claim, wait_s in ((first, 1.0), (second, 2.0)):  # but it waited 2 s, and was computed for one
            clock.advance(wait_s)
            backlog.start(claim, 1000, 0)
            backlog.end_prefill(claim)
            backlog.leave(claim)
    assert backlog.estimates.unbiased_s(1.0) == pytest.approx(2.0, rel=0.05)


def test_expected_output_follows_what_requests_generate():
    estimates = Estimates()
    request = make_request("r", [1], max_tokens=1000)
    for _ in range(300):
        estimates.note_end(10, 40)
    assert estimates.output_tokens(request, 1000) == 40
    assert estimates.output_tokens(request, 7) == 7


def test_expected_prefill_follows_what_the_prefix_cache_holds():
    estimates = Estimates()
    for _ in range(300):
        estimates.note_start(100, 80)
    assert estimates.uncached_tokens(make_request("r", [1] * 50)) == 10


def test_a_moving_mean_forgets_what_was_expected_before_anything_was_seen():
    mean = MovingMean(256.0)
    assert mean.value == 256.0
    mean.add(10.0)
    assert mean.value == 10.0
