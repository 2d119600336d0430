"""The engine: a thread-safe face, and the loop that drives scheduler and ranks."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from core.clock import Clock, MonotonicClock
from core.errors import Draining, EaglerayError, NotReady, ReplicaFailed
from core.progress import Progress
from engine.admission import Admission
from engine.backlog import Backlog
from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.estimates import Estimates
from engine.figures import EngineFigures
from engine.intake import RETRY_AFTER_S, Intake
from engine.live_request import LiveRequest
from engine.memory import MemoryPlan
from engine.outbox import Outbox
from engine.prefix_cache import PrefixCache
from engine.rank_place import RankPlace
from engine.ranks import RankPool
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement
from engine.scheduler import Scheduler
from engine.stats import EngineStats
from engine.step_cost_model import StepCostModel
from engine.step_deadline import StepDeadline
from engine.step_writer import ScheduledStep
from parallel.checkpoint.reader import open_checkpoint
from parallel.checkpoint.source import Locate, locate_checkpoint
from parallel.models.spec import ModelSpec
from parallel.ops.choice import OpChoice
from parallel.rank.messages import Load
from parallel.sharding import ShardPlan

if TYPE_CHECKING:
    # Needs xxhash, which an engine that nobody routes to does without.
    from engine.prefix_feed import PrefixFeed

logger = logging.getLogger(__name__)

IDLE_CHECK_S = 1.0
"""How often an idle engine asks its ranks for a sign of life, so that the death of one costs no request."""


class Engine:
    """The brain of one model copy. Every accepted request gets exactly one terminal event, whatever happens.

    `submit`, `cancel`, `drain`, `load` and `close` may be called from any thread. `run` is the body of the engine
    thread; a test may call `step` instead. Sinks are called on the engine thread, once per step each.
    """

    def __init__(
        self,
        config: EngineConfig,
        spec: ModelSpec,
        ranks: RankPool,
        num_blocks: int,
        clock: Clock | None = None,
        prefix_feed: "PrefixFeed | None" = None,
        ops: Sequence[OpChoice] = (),
        places: Sequence[RankPlace] = (),
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`ranks` must be loaded. It stays the caller's to close.

        `ops` is what they compute with and `places` where they run, to be shown; `stats` are measured with `timer`.
        `prefix_feed` is to hear what the prefix cache holds.
        """
        self.prefix_feed = prefix_feed
        self.ops = tuple(ops)
        self.places = tuple(places)
        self.stats = EngineStats()
        self.max_model_len = config.model.max_model_len or spec.max_context
        self._ranks = ranks
        self._clock = clock or MonotonicClock()
        self._timer = timer
        depth = config.scheduler.max_steps_under_way
        self._max_steps_under_way = 1 if depth == "auto" else depth
        cache, limits = config.cache, config.scheduler
        self._pool = BlockPool(num_blocks, prefix_feed)
        prefix_cache = PrefixCache(self._pool, cache.block_size, cache.prefix_caching, prefix_feed)
        self._outbox = Outbox()
        self._estimates = Estimates()
        self._backlog = Backlog(limits, self._estimates, self._clock)
        self._scheduler = Scheduler(limits, self._pool, prefix_cache, cache.block_size, self._outbox, self._backlog)
        admission = Admission(spec, self.max_model_len, num_blocks, cache.block_size)
        self._intake = Intake(admission, self._backlog, limits, prefix_cache, self._clock)
        self._step_costs = StepCostModel()
        self._max_step_tokens = limits.step_tokens
        self._max_running = limits.max_running
        self._block_size = cache.block_size
        self._step_timeout_s = config.parallel.step_timeout_s
        self._step_deadline = StepDeadline(self._step_timeout_s)
        self._under_way: deque[ScheduledStep] = deque()
        # Guards the two below.
        self._closing = threading.Lock()
        self._closed_by: EaglerayError | None = None
        self._is_looping = False

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        """Accept a request: from now on exactly one terminal event of it will reach `sink`. Return what it adds.

        Raises InvalidRequest, ContextTooLong, QueueFull, Draining or NotReady; then nothing reaches `sink`.
        """
        return self._intake.submit(request, sink)

    def cancel(self, request_id: str) -> None:
        """Have the request end with `cancelled` within a step; unknown and ended requests are ignored."""
        self._intake.cancel(request_id)

    def drain(self) -> None:
        """Refuse new requests with Draining; accepted ones run to their end."""
        with self._closing:
            if self._closed_by is None:
                self._intake.refuse(Draining("the group is draining", retry_after_s=RETRY_AFTER_S))

    def close(self, error: EaglerayError) -> None:
        """Refuse new requests, and have all others end with `error` and `run` return, after the current step.

        Does not wait for that step. A step that hangs is ended by closing the ranks.
        """
        with self._closing:
            self._refuse_for(error)
            is_looping = self._is_looping
        self._intake.wake()
        if not is_looping:
            self._end_all(error)

    def load(self) -> EngineLoad:
        """Return how busy the engine is, a step old at most."""
        live = self._intake.totals()
        counters, pool = self._scheduler.counters, self._pool
        num_running = min(live.num_requests, len(self._scheduler.running))
        step_costs = self._estimates.step_costs = self._step_costs.costs()
        return EngineLoad(
            num_running=num_running,
            num_waiting=live.num_requests - num_running,
            num_outstanding_tokens=live.num_tokens - self._scheduler.num_computed_tokens,
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_steps=counters.num_steps,
            num_preemptions=counters.num_preemptions,
            num_generated_tokens=counters.num_generated_tokens,
            num_prompt_tokens=counters.num_prompt_tokens,
            num_cached_prompt_tokens=counters.num_cached_prompt_tokens,
            num_uncached_tokens=self._backlog.num_uncached_tokens,
            num_kv_tokens=self._scheduler.num_computed_tokens,
            max_step_tokens=self._max_step_tokens,
            step_costs=step_costs,
            max_kv_tokens=pool.num_blocks * self._block_size,
            wait_s=self._backlog.wait_s(),
            figures=self._figures(num_running),
        )

    def _figures(self, num_running: int) -> EngineFigures:
        if num_running >= self._max_running:
            waits_for = "rows"
        else:
            waits_for = "step_tokens" if self._backlog.has_free_blocks else "kv_blocks"
        steps = self.stats.step_times
        return EngineFigures(
            waits_for=waits_for,
            num_preempted_waiting=self._backlog.num_preempted_waiting,
            leader_s=self.stats.parts_s(),
            step_counts=steps.counts(),
            step_s=steps.total_s,
            paces=self._ranks.paces(),
        )

    def run(self) -> ReplicaFailed | None:
        """Step until closed, sleeping while there is nothing to do; blocks.

        Returns None after `close`, or the failure of the ranks. Either way every request has ended by then.
        """
        with self._closing:
            self._is_looping = True
        failure = ReplicaFailed("the engine thread ended unexpectedly")
        try:
            self._ranks.when_lost(self._intake.wake)
            while self._closed_by is None:
                if self._advance():
                    continue
                self._ranks.check()
                if not self._intake.sleep(IDLE_CHECK_S):
                    self._check_ranks()
        except ReplicaFailed as error:
            failure = error
            return error
        finally:
            with self._closing:
                reason = self._refuse_for(failure)
            self._end_all(reason)
            with self._closing:
                self._is_looping = False
        return None

    def step(self) -> bool:
        """Do what can be done now, waiting for the ranks at most once; return False when there is nothing to do.

        Raises ReplicaFailed.
        """
        has_worked = self._advance()
        return self._tell() or has_worked

    def _advance(self) -> bool:
        """Do a step, but leave what it gave to be told when the next plan is on its way. Raises ReplicaFailed."""
        self._take_orders()
        step = self._plan()
        if step is not None:
            self._send(step)
        # From here on the ranks compute, and need nothing of us.
        has_told = self._tell()
        self._publish()
        has_collected = self._collect(is_idle=step is None)
        return step is not None or has_told or has_collected

    def _check_ranks(self) -> None:
        """Have the ranks answer an empty plan. Raises ReplicaFailed."""
        self._ranks.submit(self._scheduler.empty_plan())
        self._ranks.collect(self._step_timeout_s)

    def _take_orders(self) -> None:
        """Take in what other threads asked for and what the clock says."""
        started = self._timer()
        if self._intake.has_orders:
            for live in self._intake.take_new():
                self._add(live)
            for live in self._intake.take_cancelled():
                self._scheduler.cancel(live)
        self._scheduler.expire(self._clock.now_s())
        self.stats.intake_s += self._timer() - started

    def _add(self, live: LiveRequest) -> None:
        try:
            self._scheduler.add(live)
        except Exception:
            # The boundary around one request: it was checked, so this is a bug, and must cost nobody else.
            logger.exception("request could not be queued", extra={"request_id": live.request_id})
            self._scheduler.fail(live, EaglerayError("the request could not be queued; see the replica group's log"))

    def _plan(self) -> ScheduledStep | None:
        started = self._timer()
        step = self._scheduler.plan()
        self.stats.plan_s += self._timer() - started
        return step

    def _send(self, step: ScheduledStep) -> None:
        started = self._timer()
        self._ranks.submit(step.plan)
        self._under_way.append(step)
        self.stats.submit_s += self._timer() - started

    def _tell(self) -> bool:
        """Hand every sink what is for it in one call; return whether there was anything."""
        if self._outbox.is_empty:
            return False
        started = self._timer()
        if ended := self._outbox.take_ended():
            self._intake.forget(ended)
        for sink in self._outbox.deliver():
            self._abandon(sink)
        self.stats.tell_s += self._timer() - started
        return True

    def _publish(self) -> None:
        started = self._timer()
        self._scheduler.publish()
        self.stats.publish_s += self._timer() - started

    def _collect(self, is_idle: bool) -> bool:
        """Wait for the oldest step under way and commit it, unless another one may be sent before; return whether."""
        if not self._under_way or (not is_idle and len(self._under_way) < self._max_steps_under_way):
            return False
        started = self._timer()
        step = self._under_way.popleft()
        result = self._ranks.collect(self._step_deadline.limit_s(step.num_tokens))
        collected = self._timer()
        self._scheduler.commit(step, result)
        self._learn(step, result.rank_time_s)
        self.stats.num_steps += 1
        self.stats.receive_s += collected - started
        self.stats.commit_s += self._timer() - collected
        return True

    def _learn(self, step: ScheduledStep, seconds: float) -> None:
        num_decodes = len(step.decodes)
        self.stats.step_times.record(seconds)
        self._step_deadline.record(step.num_tokens, seconds)
        num_kv_tokens = self._scheduler.num_computed_tokens if num_decodes else 0
        self._step_costs.record(step.num_tokens - num_decodes, num_decodes, num_kv_tokens, seconds)

    def _abandon(self, sink: EventSink) -> None:
        """End the requests of a consumer that can no longer be told."""
        for live in self._intake.live():
            if live.sink == sink:
                self._scheduler.cancel(live)
        self._outbox.discard(sink)
        self._intake.forget(self._outbox.take_ended())

    def _end_all(self, error: EaglerayError) -> None:
        untouched = error
        if isinstance(error, ReplicaFailed):
            # Whatever broke the ranks, it was none of the requests that no step has computed; so they are not accused.
            untouched = NotReady(f"not begun when {error.message}", retry_after_s=RETRY_AFTER_S)
        for live in self._intake.live():
            self._scheduler.fail(live, untouched if live.stay is None else error)
        self._tell()

    def _refuse_for(self, error: EaglerayError) -> EaglerayError:
        """Refuse new requests; return the first error the engine was closed by."""
        if self._closed_by is None:
            self._closed_by = error
            self._intake.refuse(NotReady(f"the engine is closed: {error.message}", retry_after_s=RETRY_AFTER_S))
        return self._closed_by


def start_engine(
    config: EngineConfig,
    ranks: RankPool,
    on_progress: Callable[[Progress], None],
    prefix_feed: "PrefixFeed | None" = None,
    locate: Locate = locate_checkpoint,
) -> Engine:
    """Have the ranks join, divide the memory, have them load; return the engine, ready to run. Blocks.

    What can be wrong with model and split is found before the ranks start. `locate` finds the model's files.
    Raises StartupError, ReplicaFailed.
    """
    model_files = locate(config.model.source, config.model.revision, lambda done, total, name: None)
    checkpoint = open_checkpoint(model_files.path)
    spec = checkpoint.spec
    shard_plan = ShardPlan.of(spec, ranks.world_size)
    joined = ranks.join(on_progress)
    scheduler = config.scheduler.settled([rank.device for rank in joined])
    config = config.model_copy(update={"scheduler": scheduler})
    memory = MemoryPlan.of(config, spec, checkpoint.tensors, shard_plan, joined)
    logger.info("memory divided", extra={"num_blocks": memory.num_blocks, "explanation": memory.explain()})
    loaded = ranks.load(
        Load(
            model=model_files.source,
            revision=model_files.revision,
            dtype=memory.dtype,
            quantization=config.model.quantization,
            kv_dtype=memory.kv_dtype,
            num_blocks=memory.num_blocks,
            block_size=memory.block_size,
            max_rows=config.scheduler.max_running,
            max_model_len=memory.max_model_len,
            max_step_tokens=scheduler.step_tokens,
        ),
        on_progress,
    )
    model = config.model.model_copy(update={"max_model_len": memory.max_model_len})
    ops = loaded[0].ops
    for choice in ops:
        logger.info("operation has a tier", extra=msgspec.structs.asdict(choice))
    return Engine(
        config.model_copy(update={"model": model}),
        spec,
        ranks,
        memory.num_blocks,
        prefix_feed=prefix_feed,
        ops=ops,
        places=[RankPlace.of(rank) for rank in joined],
    )
