"""A group's restarts by cause: red if one is not counted, or giving up or being closed counts as one."""

import threading

from cluster.supervisor import CheckedModel, Supervisor
from core.errors import CheckpointError, NotReady, RankDied, StepTimeout
from tests.support.fake_clock import FakeClock
from tests.support.fake_group import TIMEOUT_S, Changes, FakeEngine, FakeRankSource, FakeStarts, group_config


def test_in_place_restarts_are_counted_by_what_broke_and_the_end_is_none():
    engines, changes = [FakeEngine() for _ in range(3)], Changes()
    starts = FakeStarts(*engines, CheckpointError("the file is gone"))
    supervisor = Supervisor(
        group_config(), lambda config, on_progress: CheckedModel(8192), FakeRankSource(), starts, FakeClock(), changes
    )
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        for engine, error in zip(engines, (RankDied("r"), StepTimeout("s"), RankDied("r")), strict=True):
            changes.wait_for(lambda engine=engine: supervisor.snapshot().engine is engine)
            engine.breaks(error)
        changes.wait_for(lambda: supervisor.snapshot().state == "failed")
        found = supervisor.snapshot().restarts
        assert {cause: count for cause, count in found.items() if count} == {"rank_died": 2, "step_timeout": 1}
    finally:
        supervisor.close(NotReady("test over"))
        thread.join(TIMEOUT_S)
