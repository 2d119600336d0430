"""A dying fleet is not hammered, and a single death delays nobody."""

import pytest

from deployments.groups.retry_budget import RetryBudget
from tests.support.fake_clock import FakeClock


def test_every_stream_may_be_tried_again_five_times_at_once():
    budget = RetryBudget(FakeClock())
    assert [budget.take(num_open_streams=100) for _ in range(500)] == [0.0] * 500


def test_after_that_streams_go_on_at_the_rate_at_which_the_budget_fills():
    budget = RetryBudget(FakeClock())
    for _ in range(500):
        budget.take(100)
    pauses = [budget.take(100) for _ in range(20)]
    assert pauses == [pytest.approx(0.02 * number) for number in range(1, 21)]


def test_time_fills_the_budget_again():
    clock = FakeClock()
    budget = RetryBudget(clock)
    for _ in range(500):
        budget.take(100)
    clock.advance(5)
    assert [budget.take(100) for _ in range(250)] == [0.0] * 250
    assert budget.take(100) > 0
