"""Keeps one model copy served: runs an engine on its ranks, and when those break another, on what is left of them."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from cluster.config import ReplicaGroupConfig
from cluster.lifecycle import GroupEvent, next_state
from cluster.status import GroupState
from core.clock import Clock
from core.errors import EaglerayError, NotReady, ReplicaFailed, StartupError
from core.progress import Progress
from engine.config import EngineConfig
from engine.prefix_feed import PrefixFeed
from engine.rank_place import RankPlace
from engine.ranks import RankPool
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement
from parallel.ops.choice import OpChoice

logger = logging.getLogger(__name__)


class RankSource(Protocol):
    """Where the ranks of each generation come from; outlives them all."""

    def pool(self, generation: int) -> RankPool:
        """Return ranks whose processes are not started yet; blocks until there is room. Raises StartupError.

        The former pool is closed. `generation` is the first that they form.
        """
        ...

    def close(self) -> None:
        """Give the room back. Idempotent, any thread; a `pool` call that waits for room ends with NotReady."""
        ...


class ModelEngine(Protocol):
    """What a group needs of an engine; `engine.engine.Engine` is one."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt + output in tokens."""
        ...

    @property
    def ops(self) -> Sequence[OpChoice]:
        """Which tier runs each operation."""
        ...

    @property
    def places(self) -> Sequence[RankPlace]:
        """Where each rank runs."""
        ...

    @property
    def prefix_feed(self) -> PrefixFeed | None:
        """What routers are told of its prefix cache."""
        ...

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        """Take a request. Raises RequestError, Overloaded, ReplicaFailed."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request if it is open."""
        ...

    def load(self) -> EngineLoad:
        """Return how busy the engine is."""
        ...

    def run(self) -> ReplicaFailed | None:
        """Step until closed (None) or broken; every open request has ended by then."""
        ...

    def close(self, error: EaglerayError) -> None:
        """End every request with `error`; `run` returns."""
        ...


StartEngine = Callable[[EngineConfig, RankPool, Callable[[Progress], None]], ModelEngine]
"""Joins and loads the ranks; blocks. `engine.engine.start_engine` is one."""


class CheckedModel(NamedTuple):
    """What is known of a model before its ranks start."""

    max_context: int
    """Tokens of the longest context."""
    revision: str | None = None
    """The very version that was looked at, for everybody who reads the model's files from now on."""


Check = Callable[[ReplicaGroupConfig, Callable[[Progress], None]], CheckedModel]
"""Raises StartupError for what is wrong whatever the ranks do, ReplicaFailed for what may be right later; blocks.
`cluster.preflight.check_model` is one."""


class Snapshot(NamedTuple):
    """A supervisor at one moment."""

    state: GroupState
    generation: int
    progress: list[Progress]
    error: EaglerayError | None
    engine: ModelEngine | None
    restarts: dict[str, int]
    """In-place restarts by the code of what broke."""
    max_model_len: int
    """0 until the checkpoint was looked at; then its own limit, then what the memory plan left of it."""
    revision: str | None
    """Of the model: as configured until the checkpoint was looked at; then the one that was found."""


class Supervisor:
    """Owns the state, the generation number and the current engine. `run` is the body of one thread."""

    def __init__(
        self,
        config: ReplicaGroupConfig,
        check: Check,
        ranks: RankSource,
        start_engine: StartEngine,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self._config = config
        self._check = check
        self._ranks = ranks
        self._start_engine = start_engine
        self._clock = clock
        self._on_change = on_change
        self._stop = threading.Event()
        self._lock = threading.Lock()
        # Guarded by the lock.
        self._state: GroupState = "starting"
        self._generation = 0
        self._restarts: Counter[str] = Counter()
        self._progress: dict[int, Progress] = {}
        self._error: EaglerayError | None = None
        self._pool: RankPool | None = None
        self._engine: ModelEngine | None = None
        self._max_model_len = 0
        self._checked: CheckedModel | None = None
        # Touched by the thread of `run` only: failures in a row, and whether the latest generation became ready.
        self._num_failures = 0
        self._has_served = False

    def snapshot(self) -> Snapshot:
        """Return a consistent view; any thread."""
        with self._lock:
            progress = [self._progress[rank] for rank in sorted(self._progress)]
            return Snapshot(
                self._state,
                self._generation,
                progress,
                self._error,
                self._engine,
                dict(self._restarts),
                self._max_model_len,
                self._checked.revision if self._checked else self._config.model.revision,
            )

    def run(self) -> None:
        """Serve one generation after another until closed, drained away, or out of restarts; blocks."""
        try:
            self._serve_generation()
            while self._is_restarting():
                self._stop.wait(self._config.restart.pause_s(self._num_failures))
                with self._lock:
                    self._generation += 1
                self._serve_generation()
        finally:
            self._bury()
            self._ranks.close()

    def drain(self) -> None:
        """Accept nothing new; what is open goes on."""
        self._move("drain")

    def close(self, error: EaglerayError) -> None:
        """End every open request with `error` and kill the ranks; `run` returns soon after. Idempotent, any thread."""
        self._stop.set()
        with self._lock:
            engine, pool = self._engine, self._pool
        if engine is not None:
            engine.close(error)
        elif pool is not None:
            pool.close()
        self._ranks.close()

    def _serve_generation(self) -> None:
        """Be one generation, from placement until its engine has ended; ranks that can go on are kept."""
        started_s = self._clock.now_s()
        self._has_served = False
        try:
            error = self._run_engine()
        except EaglerayError as problem:
            error = problem
        except Exception as problem:
            # The replica boundary: a bug must not leave a group that looks alive.
            logger.exception("engine bug", extra={"generation": self._generation})
            error = ReplicaFailed(f"the engine broke: {type(problem).__name__}: {problem}")
        if error is not None and not self._stop.is_set():
            self._broke(error, self._clock.now_s() - started_s)
        if not self._may_keep_ranks():
            self._bury()

    def _run_engine(self) -> ReplicaFailed | None:
        """Return what ended the engine, None if it was closed. Raises what kept it from starting."""
        checked = self._checked or self._describe(self._check(self._config, self._note_progress))
        pool = self._claim_ranks()
        model = self._config.model.model_copy(update={"revision": checked.revision})
        config = self._config.engine.model_copy(update={"model": model})
        engine = self._start_engine(config, pool, self._note_progress)
        self._became_ready(engine)
        return engine.run()

    def _claim_ranks(self) -> RankPool:
        """Return what is left of the former generation's ranks, or new ones."""
        with self._lock:
            pool = self._pool
            self._progress = {}
        if pool is not None:
            pool.renew(self._generation)
            return pool
        pool = self._ranks.pool(self._generation)
        self._adopt(pool)
        return pool

    def _may_keep_ranks(self) -> bool:
        # Ranks that did not get as far as serving, or fail one time after the other, are not to be trusted.
        return self._is_restarting() and self._has_served and self._num_failures == 1

    def _describe(self, checked: CheckedModel) -> CheckedModel:
        # Known before the ranks are: gateways load the tokenizer while the ranks load the weights.
        with self._lock:
            self._checked = checked
            self._max_model_len = checked.max_context
        self._on_change()
        return checked

    def _bury(self) -> None:
        """Kill what is left of the ranks; returns when their processes are gone."""
        with self._lock:
            pool = self._pool
        if pool is not None:
            pool.close()
        with self._lock:
            self._pool = self._engine = None

    def _adopt(self, pool: RankPool) -> None:
        with self._lock:
            self._pool = pool
        # `close` looks at the pool under the lock: either it sees this one, or we see its flag.
        if self._stop.is_set():
            pool.close()

    def _became_ready(self, engine: ModelEngine) -> None:
        with self._lock:
            self._engine = engine
            self._max_model_len = engine.max_model_len
            self._state = next_state(self._state, "loaded")
            self._error = None
        self._has_served = True
        if self._stop.is_set():
            engine.close(NotReady("the replica group was closed while it started"))
        logger.info("group ready", extra={"generation": self._generation})
        self._on_change()

    def _is_restarting(self) -> bool:
        with self._lock:
            return self._state == "restarting" and not self._stop.is_set()

    def _broke(self, error: EaglerayError, lived_s: float) -> None:
        """Move to restarting, or to failed when another try cannot help."""
        if lived_s >= self._config.restart.stable_after_s:
            self._num_failures = 0
        self._num_failures += 1
        is_hopeless = isinstance(error, StartupError) or self._num_failures > self._config.restart.max_attempts
        with self._lock:
            self._engine = None
            self._error = error
            self._restarts[error.code] += not is_hopeless
        logger.warning(
            "generation ended",
            extra={"generation": self._generation, "error": str(error), "num_failures": self._num_failures},
        )
        self._move("gave_up" if is_hopeless else "broke")

    def _note_progress(self, progress: Progress) -> None:
        with self._lock:
            self._progress[progress.rank] = progress
        self._on_change()

    def _move(self, event: GroupEvent) -> None:
        with self._lock:
            self._state = next_state(self._state, event)
        self._on_change()
