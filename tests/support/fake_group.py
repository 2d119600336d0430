"""What a replica group stands on, without ranks: a clock moved by hand, an engine that runs until told, room."""

import threading
from collections.abc import Callable

from cluster.config import ReplicaGroupConfig, RestartConfig
from core.errors import EaglerayError, ErrorInfo, ReplicaFailed
from core.progress import Progress
from engine.config import EngineConfig, ModelConfig
from engine.rank_place import RankPlace
from engine.ranks import RankPool
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement, StepEvents, TokenEvent
from parallel.ops.choice import OpChoice
from parallel.sampling.params import SamplingParams
from tests.support.fake_ranks import FakeRankPool

TIMEOUT_S = 10.0


class FakeEngine:
    """A `ModelEngine`: accepts every request and does nothing until a test breaks, finishes or closes it."""

    max_model_len = 2048
    prefix_feed = None
    ops = (OpChoice("linear", "torch", "fake"),)
    places = (RankPlace(0, "here", 1, "cpu"),)

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._end: ReplicaFailed | None = None
        self.open: dict[str, EventSink] = {}

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        """Remember it."""
        self.open[request.request_id] = sink
        return Placement.of(request)

    def cancel(self, request_id: str) -> None:
        """Forget it, with its terminal event."""
        self.finish(request_id)

    def finish(self, request_id: str) -> None:
        """End one request."""
        event = TokenEvent(request_id, [], finish_reason="stop")
        self.open.pop(request_id)(StepEvents(events=[event]))

    def load(self) -> EngineLoad:
        """Return the number of open requests."""
        return EngineLoad(len(self.open), 0, 0, 100, 100 - len(self.open), 0, 0, 0, 0, 0, 0)

    def run(self) -> ReplicaFailed | None:
        """Block until a test ends it."""
        assert self._ended.wait(TIMEOUT_S), "nobody ended the fake engine"
        return self._end

    def breaks(self, error: ReplicaFailed) -> None:
        """Have `run` return `error`, after every open request ended with it."""
        self._fail_open(error)
        self._end = error
        self._ended.set()

    def close(self, error: EaglerayError) -> None:
        """Have `run` return None, after every open request ended with `error`."""
        self._fail_open(error)
        self._ended.set()

    def _fail_open(self, error: EaglerayError) -> None:
        while self.open:
            request_id, sink = self.open.popitem()
            sink(StepEvents(events=[TokenEvent(request_id, [], error=ErrorInfo.of(error))]))


class FakeRankSource:
    """A `RankSource` that remembers each generation's pool; an exception in `refusals` is raised instead, in order."""

    def __init__(self) -> None:
        self.pools: dict[int, FakeRankPool] = {}
        self.refusals: list[EaglerayError] = []
        self.is_closed = False

    def pool(self, generation: int) -> RankPool:
        """Return a new pool, or refuse."""
        assert not self.is_closed
        if self.refusals:
            raise self.refusals.pop(0)
        self.pools[generation] = FakeRankPool()
        return self.pools[generation]

    def close(self) -> None:
        """Remember."""
        self.is_closed = True


class FakeStarts:
    """A `StartEngine` whose outcomes a test lists: engines to hand out, errors to raise. Reports 50 % of load first."""

    def __init__(self, *outcomes: FakeEngine | Exception) -> None:
        self._outcomes = list(outcomes)
        self.num_starts = 0

    def __call__(self, config: EngineConfig, ranks: RankPool, on_progress: Callable[[Progress], None]) -> FakeEngine:
        """Return or raise the next outcome."""
        self.num_starts += 1
        on_progress(Progress(0, "load", 1, 2))
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Changes:
    """Counts `on_change` calls and lets a test wait for a condition to hold after one of them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()

    def __call__(self) -> None:
        """Wake whoever waits."""
        with self._condition:
            self._condition.notify_all()

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Return once `holds`; fails the test after ten seconds."""
        with self._condition:
            assert self._condition.wait_for(holds, TIMEOUT_S)


def group_config(max_attempts: int = 3, stable_after_s: float = 60.0) -> ReplicaGroupConfig:
    """Return a config whose restarts never wait."""
    restart = RestartConfig(max_attempts=max_attempts, backoff_s=0.0, stable_after_s=stable_after_s)
    return ReplicaGroupConfig(name="m", model=ModelConfig(source="nowhere"), restart=restart)


def a_request(request_id: str = "r1") -> GenerationRequest:
    """Return a request of one token."""
    sampling = SamplingParams(max_tokens=1, seed=0)
    return GenerationRequest(request_id=request_id, token_ids=[1], num_prompt_tokens=1, sampling=sampling)
