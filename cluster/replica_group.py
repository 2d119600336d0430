"""One copy of one model as the rest of the system sees it: submit, cancel, load, status, health, drain, close."""

import threading
import time
from collections.abc import Callable

import msgspec

from cluster.config import ReplicaGroupConfig
from cluster.status import ChannelAddress, GroupStatus
from cluster.supervisor import Check, ModelEngine, RankSource, Snapshot, StartEngine, Supervisor
from core.clock import Clock, MonotonicClock
from core.errors import Draining, EaglerayError, ErrorInfo, NotReady, ReplicaFailed
from engine.prefix_feed import PrefixFeed
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement

_DRAIN_POLL_S = 0.05
_CLOSE_TIMEOUT_S = 30.0


class GroupIdentity(msgspec.Struct, frozen=True):
    """Who a group is; never changes."""

    group_id: str
    application: str


class ReplicaGroup:
    """A `SubmitTarget`: takes requests while ready, says why not otherwise. Any method, any thread."""

    def __init__(
        self,
        config: ReplicaGroupConfig,
        identity: GroupIdentity,
        check: Check,
        ranks: RankSource,
        start_engine: StartEngine,
        *,
        clock: Clock | None = None,
        on_change: Callable[[], None] = lambda: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Build it without starting anything. `on_change` is called from any thread and must not block."""
        self._config = config
        self._identity = identity
        self._clock = clock or MonotonicClock()
        self._pause = pause
        self._supervisor = Supervisor(config, check, ranks, start_engine, self._clock, on_change)
        self._thread = threading.Thread(target=self._supervisor.run, name="engine", daemon=True)
        self._channel: ChannelAddress | None = None

    def start(self) -> None:
        """Begin to place and load the ranks; returns at once, `on_change` tells the rest."""
        self._thread.start()

    def listens_at(self, channel: ChannelAddress) -> None:
        """Remember where the token channel is, for `status`."""
        self._channel = channel

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        """Take a request; exactly one terminal event follows. Raises RequestError, Overloaded, ReplicaFailed."""
        return self._serving_engine().submit(request, sink)

    def cancel(self, request_id: str) -> None:
        """End a request if it is open."""
        engine = self._supervisor.snapshot().engine
        if engine is not None:
            engine.cancel(request_id)

    def load(self) -> EngineLoad | None:
        """Return how busy the group is; None while it has no engine."""
        engine = self._supervisor.snapshot().engine
        return None if engine is None else engine.load()

    def prefix_feed(self) -> PrefixFeed | None:
        """Return what routers are told of the prefix cache; None while there is no engine, or no such cache."""
        engine = self._supervisor.snapshot().engine
        return None if engine is None else engine.prefix_feed

    def status(self) -> GroupStatus:
        """Return what gateways are told."""
        now = self._supervisor.snapshot()
        config = self._config
        return GroupStatus(
            group_id=self._identity.group_id,
            model=config.name,
            application=self._identity.application,
            state=now.state,
            generation=now.generation,
            restarts=now.restarts,
            world_size=config.parallel.tensor_parallel_size,
            progress=now.progress if now.state in ("starting", "restarting") else [],
            error=None if now.error is None else ErrorInfo.of(now.error),
            channel=self._channel,
            model_source=config.model.source,
            model_revision=now.revision,
            max_model_len=now.max_model_len,
            num_kv_blocks=0 if now.engine is None else now.engine.load().num_blocks,
            block_size=config.cache.block_size,
            ops=[] if now.engine is None else list(now.engine.ops),
            places=[] if now.engine is None else list(now.engine.places),
        )

    def failure(self) -> EaglerayError | None:
        """Return why the group cannot be saved here, None while it serves, starts, or restarts in place."""
        now = self._supervisor.snapshot()
        if now.state == "failed":
            return now.error or ReplicaFailed("the replica group failed")
        if not self._thread.is_alive() and now.state != "starting":
            return ReplicaFailed("the engine thread ended")
        return None

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing new and wait for open requests; blocks. Returns whether all of them finished in time."""
        self._supervisor.drain()
        deadline_s = self._clock.now_s() + timeout_s
        while (is_busy := self._is_busy()) and self._clock.now_s() < deadline_s:
            self._pause(_DRAIN_POLL_S)
        return not is_busy

    def close(self) -> None:
        """End what is open with Draining and kill the ranks; returns when they are gone. Idempotent."""
        self._supervisor.close(Draining("the replica group shut down before the request finished", retry_after_s=1.0))
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _is_busy(self) -> bool:
        load = self.load()
        return load is not None and load.num_running + load.num_waiting > 0

    def _serving_engine(self) -> ModelEngine:
        now = self._supervisor.snapshot()
        if now.state == "ready" and now.engine is not None:
            return now.engine
        raise self._refusal(now)

    def _refusal(self, now: Snapshot) -> EaglerayError:
        name = self._config.name
        if now.state == "draining":
            return Draining(f"{name}: this replica group is draining; send the request again", retry_after_s=1.0)
        if now.state == "failed":
            return ReplicaFailed(f"{name}: this replica group failed: {now.error}")
        return NotReady(f"{name}: this replica group is {now.state}; send the request again", retry_after_s=2.0)
