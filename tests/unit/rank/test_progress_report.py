"""Progress is thinned, but its end is never lost."""

from core.progress import Progress
from parallel.rank.loading import ProgressReport
from tests.support.fake_clock import FakeClock


def test_progress_comes_at_most_ten_times_a_second_and_always_at_the_end_of_a_phase():
    clock, seen = FakeClock(), list[Progress]()
    report = ProgressReport(3, seen.append, clock)
    for done in range(1000):
        report("load", done, 1000, "a file")
        clock.advance(0.001)
    report("load", 1000, 1000, "")
    report("warmup", 0, 1, "")
    assert [p.done for p in seen if p.phase == "load"][-1] == 1000
    assert 10 <= len([p for p in seen if p.phase == "load"]) <= 12
    assert seen[-1] == Progress(3, "warmup", 0, 1)
