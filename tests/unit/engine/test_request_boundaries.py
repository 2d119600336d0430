"""What goes wrong with one request costs nobody else a token, and never the engine."""

import pytest

from core.errors import InvalidRequest, RankDied
from engine.scheduler import Scheduler
from parallel.sampling.params import MAX_TOP_K, SamplingParams
from tests.support.engines import Collector, make_engine, make_request, run_until_idle
from tests.support.fake_ranks import FakeRankPool, expected_tokens


@pytest.fixture
def sink() -> Collector:
    return Collector()


def test_a_request_that_cannot_be_queued_is_told_and_the_others_go_on(sink, monkeypatch):
    def breaks_for_one(self, live):
        if live.request_id == "ill":
            raise ZeroDivisionError("a bug that one request brings out")
        add(self, live)

    add = Scheduler.add
    monkeypatch.setattr(Scheduler, "add", breaks_for_one)
    ranks = FakeRankPool()
    engine = make_engine(ranks)
    engine.submit(make_request("well", [1, 2, 3], max_tokens=5), sink)
    engine.submit(make_request("ill", [4, 5], max_tokens=5), sink)
    run_until_idle(engine)
    assert sink.tokens("well") == expected_tokens([1, 2, 3], 5, ranks.vocab_size)
    assert sink.ended["ill"].error.code == "internal_error"
    assert engine.load().num_running == engine.load().num_waiting == 0


def test_numbers_that_no_array_holds_are_refused_before_a_rank_sees_them():
    with pytest.raises(InvalidRequest, match="top_k"):
        SamplingParams(max_tokens=1, seed=0, top_k=MAX_TOP_K + 1)


def test_an_idle_engine_whose_rank_is_lost_ends_at_once(sink):
    class LostRanks(FakeRankPool):
        def when_lost(self, callback):
            self.is_lost = True
            callback()

        def check(self):
            if self.is_lost:
                raise RankDied("rank 1 died")

    engine = make_engine(LostRanks())
    failure = engine.run()
    assert isinstance(failure, RankDied)
    assert engine.stats.num_steps == 0
