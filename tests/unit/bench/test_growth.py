import pytest

from benchmarks.faults.watch import Growth, Incarnation, Limits, Reading, Slope, growths, slope

RANK = Incarnation("rank", 7, 1.0)
LIMITS = Limits(warm_up_s=60, least_watched_s=120, rss_mib_per_h=40, fds=4, threads=2)
MIB = 2**20


def life(seconds: int, rss_mib=lambda at: 100.0, fds=lambda at: 20) -> list[Reading]:
    return [Reading(1000.0 + at, int(rss_mib(at) * MIB), fds(at), 5) for at in range(0, seconds, 2)]


def growth(**changes) -> Growth:
    return growths({RANK: life(600, **changes)}, LIMITS)[0]


def test_slope_of_a_straight_line_is_exact_and_certain():
    found = slope([0, 1800, 3600], [10, 15, 20])
    assert found.per_h == pytest.approx(10)
    assert found.error_per_h == pytest.approx(0, abs=1e-9)


def test_slope_of_noise_is_less_than_its_uncertainty():
    noise = [(-1) ** number * 5.0 for number in range(100)]
    found = slope(range(0, 200, 2), noise)
    assert abs(found.per_h) < 2 * found.error_per_h


def test_a_leak_of_a_mebibyte_a_minute_is_found():
    assert growth(rss_mib=lambda at: 100 + at / 60).reasons(LIMITS) == ["memory by 60 MiB an hour"]


def test_what_a_process_takes_while_it_warms_up_is_no_leak():
    assert growth(rss_mib=lambda at: 100 + min(at, 50)).reasons(LIMITS) == []


def test_memory_that_approaches_a_bound_is_no_leak_and_its_minutes_show_it():
    found = growth(rss_mib=lambda at: 100 + min(at, 300))
    assert found.reasons(LIMITS) == []
    assert [round(value) for value in found.rss_by_minute_mib] == [189, 249, 309, 369, 400, 400, 400, 400, 400]


def test_memory_that_goes_up_and_down_is_no_leak():
    assert growth(rss_mib=lambda at: 100 + at % 20).reasons(LIMITS) == []


def test_descriptors_that_are_not_given_back_are_found():
    assert growth(fds=lambda at: 20 + at // 60).reasons(LIMITS) == ["descriptors from 22 to 28"]


def test_processes_that_did_not_live_long_enough_say_nothing():
    assert growths({RANK: life(150)}, LIMITS) == []


def test_a_process_id_that_is_used_again_is_another_process():
    later = Incarnation("rank", 7, 900.0)
    assert [one.process for one in growths({RANK: life(600), later: life(600)}, LIMITS)] == [RANK, later]


def test_an_uncertain_slope_is_not_called_growth():
    uncertain = growth()._replace(rss=Slope(100.0, 35.0))
    assert uncertain.reasons(LIMITS) == []
