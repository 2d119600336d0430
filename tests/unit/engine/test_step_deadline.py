"""A hung step is found soon, and a slow one is not taken for hung."""

from engine.step_deadline import StepDeadline


def test_without_experience_the_configured_limit_counts():
    deadline = StepDeadline(60.0)
    for _ in range(100):
        deadline.record(1, 0.01)
    assert deadline.limit_s(1) == 60.0


def test_many_fast_steps_tighten_the_limit_to_the_floor():
    deadline = StepDeadline(60.0)
    for _ in range(200):
        deadline.record(8, 0.01)
    assert deadline.limit_s(8) == 4.0


def test_the_slowest_percent_counts():
    deadline = StepDeadline(60.0)
    for number in range(256):
        deadline.record(8, 0.5 if number % 50 == 0 else 0.01)
    assert deadline.limit_s(8) == 10.0


def test_decode_steps_say_nothing_about_prefill_steps():
    deadline = StepDeadline(60.0)
    for _ in range(200):
        deadline.record(8, 0.01)
    assert deadline.limit_s(512) == 60.0


def test_the_configured_limit_is_never_exceeded():
    deadline = StepDeadline(1.0)
    for _ in range(200):
        deadline.record(8, 0.9)
    assert deadline.limit_s(8) == 1.0
