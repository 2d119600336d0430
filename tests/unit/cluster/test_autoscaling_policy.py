"""Groups are added at once and within bounds, and taken away slowly, one by one."""

import random

import pytest

from cluster.autoscaling.policy import AutoscalingPolicy, Observation, ScalingConfig, SlidingMaximum


def policy(min_groups=1, max_groups=16, **config):
    return AutoscalingPolicy(ScalingConfig.parse(config, "test"), min_groups, max_groups)


def play(scaler, seconds, observe, num_groups, start_s=0):
    """Ask every second and do as told; return the number of groups after each."""
    counts = []
    for second in range(seconds):
        num_groups = scaler.desired(start_s + second, observe(second)._replace(num_groups=num_groups))
        counts.append(num_groups)
    return counts


def constant(**work):
    return lambda second: Observation(0, **work)


def test_work_beyond_the_target_load_is_met_at_once():
    assert policy(target_load=0.5).desired(0, Observation(1, prefill_load=0.6, decode_load=0.3)) == 2


def test_a_backlog_asks_for_what_drains_it_in_time():
    assert policy(drain_backlog_s=20).need(Observation(1, backlog_s=60)) == pytest.approx(3)


def test_full_kv_blocks_ask_for_a_group_though_little_is_computed():
    assert policy(max_resident=0.9).desired(0, Observation(1, decode_load=0.1, resident=1.0)) == 2


def test_growth_is_bounded_per_period():
    counts = play(policy(max_groups=100), 95, constant(prefill_load=50.0), num_groups=1)
    assert counts[0] == 2 and counts[29] == 2
    assert counts[31] == 4 and counts[62] == 8 and counts[93] == 16


def test_it_never_leaves_its_bounds():
    scaler, rng = policy(min_groups=2, max_groups=5, down_after_s=10, down_period_s=0), random.Random(1)
    counts = play(scaler, 500, lambda second: Observation(0, prefill_load=rng.random() * 8), num_groups=2)
    assert set(counts) <= {2, 3, 4, 5} and max(counts) == 5


def test_a_short_lull_takes_nothing_away():
    def observe(second):
        return Observation(0, prefill_load=0.1 if 200 < second < 370 else 2.5)

    assert set(play(policy(down_after_s=180), 600, observe, num_groups=4)) == {4}


def test_after_a_lull_groups_go_one_at_a_time():
    counts = play(policy(down_after_s=180, down_period_s=60), 420, constant(prefill_load=0.1), num_groups=4)
    assert counts[179] == 4 and counts[180] == 3
    assert counts[239] == 3 and counts[240] == 2 and counts[301] == 1
    assert set(counts[301:]) == {1}


def test_no_group_goes_while_another_drains():
    scaler = policy(down_after_s=0, down_period_s=0)
    assert scaler.desired(0, Observation(3, num_draining=1)) == 3
    assert scaler.desired(1, Observation(3, num_draining=0)) == 2


def test_a_load_at_the_edge_does_not_make_the_count_swing():
    scaler = policy(target_load=0.5, down_after_s=5, down_period_s=0, down_margin=0.1)
    rng = random.Random(2)
    # Two groups' worth, give or take 4 %: three are wanted now and then, two are too few to go back to.
    counts = play(scaler, 300, lambda second: Observation(0, prefill_load=1.0 + 0.04 * rng.uniform(-1, 1)), 2)
    assert counts.count(2) + counts.count(3) == len(counts) and counts == sorted(counts) and counts[-1] == 3


def test_spares_come_on_top_of_the_need():
    assert policy(min_spare=2, max_growth=10).desired(0, Observation(1, prefill_load=0.6)) == 3


def test_the_last_group_stays_unless_zero_is_asked_for():
    assert play(policy(min_groups=0, down_after_s=0), 2000, constant(), 1)[-1] == 1


def test_an_idle_model_goes_to_zero_and_a_held_request_brings_it_back():
    scaler = policy(min_groups=0, to_zero_after_s=600, down_after_s=0)
    counts = play(scaler, 700, constant(), 1)
    assert counts[599] == 1 and counts[600] == 0 and counts[-1] == 0
    assert scaler.desired(701, Observation(0, num_held=3)) == 1


def test_a_model_that_begins_with_no_group_waits_for_its_first_request():
    scaler = policy(min_groups=0, to_zero_after_s=600)
    assert scaler.desired(0, Observation(0)) == 0
    assert scaler.desired(1, Observation(0, num_held=1)) == 1


def test_the_sliding_maximum_is_the_maximum_of_the_window():
    rng, window, values = random.Random(3), SlidingMaximum(10), []
    for second in range(300):
        values.append(rng.random())
        assert window.add(second, values[-1]) == max(values[-11:])
