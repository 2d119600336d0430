"""Red when a second is lost, kept twice or for ever, when rates survive a restart, or when a bucket lies."""

import msgspec
import pytest

from deployments.live.history import KEPT_SECONDS, GroupNow, LiveHistory, ModelSecond
from deployments.live.latencies import BUCKETS_PER_OCTAVE, FIRST_BUCKET_S, NUM_BUCKETS, BucketCounts
from deployments.live.rates import GroupMeter
from engine.figures import EngineFigures
from engine.request import EngineLoad


def load(prompt: int = 0, generated: int = 0, steps: int = 0, running: int = 0, step_s: float = 0.0) -> EngineLoad:
    figures = EngineFigures("rows", 0, {}, [], step_s, [])
    return EngineLoad(running, 1, 0, 10, 5, 1, steps, 0, generated, prompt, 0, figures=figures)


class World:
    """Groups and a wall clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.02
        self.groups: list[GroupNow] = []
        self.history = LiveHistory(lambda: self.groups, lambda: self.now_s)

    def tick(self, seconds: float = 1.0) -> None:
        self.now_s += seconds
        self.history.tick()

    def seconds(self, since: int = 0) -> dict[int, dict[str, ModelSecond]]:
        kept = self.history.since(since, lambda model: True)
        return {
            each.second: {name: msgspec.json.decode(raw, type=ModelSecond) for name, raw in each.models.items()}
            for each in kept
        }


def test_each_second_is_kept_once_and_no_longer_than_ten_minutes():
    world = World()
    world.groups = [GroupNow("g", "tiny", load())]
    world.tick()
    world.history.tick()
    assert list(world.seconds()) == [1000]
    for _ in range(KEPT_SECONDS + 5):
        world.tick()
    assert list(world.seconds()) == list(range(1006, 1006 + KEPT_SECONDS))
    assert list(world.seconds(since=1603)) == [1604, 1605]


def test_a_second_adds_up_the_groups_of_a_model_and_tells_their_rates():
    world = World()
    world.groups = [GroupNow("g1", "tiny", load()), GroupNow("g2", "tiny", load()), GroupNow("g3", "other", load())]
    world.tick()
    world.groups = [
        GroupNow("g1", "tiny", load(prompt=30, generated=10, running=2)),
        GroupNow("g2", "tiny", load(prompt=10, generated=5, running=1)),
        GroupNow("g3", "other", load()),
    ]
    world.tick()
    second = world.seconds()[1001]
    assert list(second) == ["other", "tiny"]
    assert second["tiny"] == ModelSecond(3, 2, 40.0, 15.0, 0.4, [], [])


def test_counts_that_begin_anew_with_a_new_generation_are_no_negative_rate():
    world = World()
    for generated in (100, 150, 5, 12):
        world.groups = [GroupNow("g", "tiny", load(prompt=generated, generated=generated, steps=generated))]
        world.tick()
    rates = [each["tiny"].output_tokens_s for each in world.seconds().values()]
    assert rates == [0, 50, 0, 7]


def test_latencies_are_counted_in_the_second_they_came_in_and_only_there():
    world = World()
    counted = world.history.latencies("tiny").of_request(received_s=5.0)
    counted.note_first(5.5)
    counted.note_gap(0.01, 2)
    world.tick()
    world.tick()
    first, after = (each["tiny"] for each in world.seconds().values())
    assert (first.first_token[1::2], first.next_token[1::2]) == ([1], [2])
    assert (after.first_token, after.next_token) == ([], [])


def test_only_models_that_the_asker_may_know_of_are_told():
    world = World()
    world.groups = [GroupNow("g1", "mine", load()), GroupNow("g2", "theirs", load())]
    world.tick()
    (second,) = world.history.since(0, lambda model: model == "mine")
    assert list(second.models) == ["mine"]


def test_groups_that_are_gone_leave_nothing_behind():
    world = World()
    for number in range(50):
        world.groups = [GroupNow(f"g{number}", "tiny", load())]
        world.tick()
    assert len(world.history._meters) == 1


def test_a_clock_that_was_set_back_begins_a_new_history():
    world = World()
    world.tick(3600)
    world.tick(-3600)
    world.tick()
    assert list(world.seconds()) == [1000]


def test_seconds_that_a_busy_loop_missed_have_the_mean_rates_of_the_gap_and_long_gaps_stay_gaps():
    world = World()
    world.groups = [GroupNow("g", "tiny", load())]
    world.tick()
    world.history.latencies("tiny").of_request(0.0).note_first(1.0)
    world.groups = [GroupNow("g", "tiny", load(generated=40))]
    world.tick(4.0)
    assert [second["tiny"].output_tokens_s for second in world.seconds().values()] == [0, 10, 10, 10, 10]
    assert [len(second["tiny"].first_token) for second in world.seconds().values()] == [0, 0, 0, 0, 2]
    world.tick(60.0)
    assert list(world.seconds()) == [1000, 1001, 1002, 1003, 1004, 1064]


def test_a_meter_smooths_over_three_seconds_and_knows_the_mean_step():
    meter = GroupMeter()
    for second in range(10):
        steps = 20 * second
        meter.read(float(second), load(generated=10 * second, steps=steps, running=1, step_s=0.04 * steps))
    assert meter.rates.output_tokens_s == pytest.approx(10)
    assert meter.rates.step_s == pytest.approx(0.04)
    assert len(meter._readings) == 4
    assert GroupMeter().rates.step_s is None


@pytest.mark.parametrize("seconds", [0.00011, 0.0009, 0.0123, 0.5, 1.0, 59.0, 999.0])
def test_a_bucket_is_within_three_percent_of_what_is_in_it(seconds):
    counts = BucketCounts()
    counts.add(seconds)
    bucket, times = counts.take()
    assert times == 1
    assert FIRST_BUCKET_S * 2 ** (bucket / BUCKETS_PER_OCTAVE) == pytest.approx(seconds, rel=0.03)


def test_times_beyond_the_scale_are_in_its_last_buckets_and_taking_begins_anew():
    counts = BucketCounts()
    for seconds in (0.0, 1e-9, 1e9):
        counts.add(seconds, 2)
    assert counts.take() == [0, 4, NUM_BUCKETS - 1, 2]
    assert counts.take() == []
