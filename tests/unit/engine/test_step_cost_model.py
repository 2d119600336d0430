"""StepCostModel on synthetic steps: red if costs are off by more than a few percent, negative, or fooled."""

import random

import pytest

from engine.step_cost_model import MIN_STEPS, StepCostModel
from engine.step_costs import StepCosts

TRUE = StepCosts(base_s=4e-3, prefill_token_s=8e-5, sequence_s=1.5e-4, kv_token_s=4e-8)


def seconds_of(costs, prefill, sequences, kv):
    return costs.base_s + prefill * costs.prefill_token_s + sequences * costs.sequence_s + kv * costs.kv_token_s


def busy_step(rng):
    """A step of a group whose load goes up and down."""
    sequences = rng.randrange(0, 64)
    prefill = rng.choice([0, 0, 0, 0, rng.randrange(1, 2048)])
    return prefill, sequences, sequences * rng.randrange(200, 4000)


def feed(model, rng, num_steps, costs=TRUE, noise=0.05, draw=busy_step):
    for _ in range(num_steps):
        step = draw(rng)
        model.record(*step, seconds_of(costs, *step) * rng.gauss(1.0, noise))


def assert_close(found, true, tolerance):
    for name in StepCosts.__struct_fields__:
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=tolerance), (name, found)


def test_costs_of_noisy_steps_are_found_within_a_few_percent():
    rng, model = random.Random(1), StepCostModel()
    for _ in range(40):
        feed(model, rng, 50)
        model.costs()
    assert_close(model.costs(), TRUE, 0.04)


def test_steps_that_took_ten_times_as_long_are_not_believed():
    rng, model = random.Random(2), StepCostModel()
    for _ in range(40):
        feed(model, rng, 49)
        step = busy_step(rng)
        model.record(*step, 10 * seconds_of(TRUE, *step))
        model.costs()
    assert_close(model.costs(), TRUE, 0.06)


def test_one_step_measured_as_instant_does_not_outweigh_all_others():
    rng, model = random.Random(3), StepCostModel()
    for is_glitch in [False] * 20 + [True] + [False] * 20:
        feed(model, rng, 50)
        if is_glitch:
            model.record(512, 8, 8000, 1e-9)
            model.record(512, 8, 8000, 0.0)
        model.costs()
    assert_close(model.costs(), TRUE, 0.06)


def test_a_change_of_speed_is_learned_and_the_old_speed_forgotten():
    rng, model = random.Random(4), StepCostModel(memory_steps=500)
    feed(model, rng, 2000)
    model.costs()
    slower = StepCosts(*(3 * cost for cost in (TRUE.base_s, TRUE.prefill_token_s, TRUE.sequence_s, TRUE.kv_token_s)))
    for _ in range(40):
        feed(model, rng, 100, slower)
        model.costs()
    assert_close(model.costs(), slower, 0.06)


def test_what_a_steady_load_cannot_show_stays_as_it_was():
    """Red if hours of decoding one batch make the group forget what prefill costs, or move base against sequences."""
    rng, model = random.Random(5), StepCostModel()
    for _ in range(40):
        feed(model, rng, 50)
        model.costs()
    for _ in range(200):
        feed(model, rng, 250, draw=lambda rng: (0, 8, 8 * rng.randrange(900, 1100)))
        model.costs()
    found = model.costs()
    assert found.prefill_token_s == pytest.approx(TRUE.prefill_token_s, rel=0.15)
    for sequences in (1, 8, 48):
        step = 0, sequences, 1000 * sequences
        assert seconds_of(found, *step) == pytest.approx(seconds_of(TRUE, *step), rel=0.15)


def test_no_cost_is_negative_even_if_that_would_fit_better():
    rng, model = random.Random(6), StepCostModel()
    for _ in range(500):
        sequences, kv = rng.randrange(1, 64), rng.randrange(1, 100_000)
        model.record(0, sequences, kv, 0.01 - 1e-4 * sequences + 1e-8 * kv)
    found = model.costs()
    assert min(found.base_s, found.prefill_token_s, found.sequence_s, found.kv_token_s) >= 0.0
    assert found.sequence_s == 0.0
    assert found.base_s == pytest.approx(0.007, rel=0.3)


def test_nothing_is_claimed_before_enough_steps():
    rng, model = random.Random(7), StepCostModel()
    feed(model, rng, MIN_STEPS - 1)
    assert model.costs() is None
    feed(model, rng, 1)
    assert model.costs() is not None


def test_steps_nobody_asks_about_are_kept_in_bounded_memory():
    model = StepCostModel()
    feed(model, random.Random(8), 10_000)
    assert len(model._unread) < 5000
    assert_close(model.costs(), TRUE, 0.05)
