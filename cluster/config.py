"""What one replica group is configured with: the model copy, where its ranks run, and how often they may restart."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from cluster.weights.config import WeightsConfig
from core.config import Config
from engine.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig


class PlacementConfig(Config):
    """What Ray reserves for each rank, and how close together the ranks must be."""

    cpus_per_rank: float = Field(default=1.0, ge=0)
    """Ray CPUs a rank reserves. Book-keeping only: `parallel.threads_per_rank` decides what it uses."""
    gpus_per_rank: PositiveInt = 1
    """GPUs a rank reserves on `cuda`; nothing is reserved on `cpu`."""
    strategy: Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    """`STRICT_PACK`: all ranks on one node, or none. `PACK`: on as few nodes as there is room."""
    topology_label: str | None = None
    """Node label whose value all ranks must share, e.g. `ray.io/gpu-domain`; replaces `strategy`."""
    timeout_s: float = Field(default=120.0, gt=0, le=86400)
    """Longest wait for room; a cluster that adds nodes on demand needs minutes."""


class RestartConfig(Config):
    """In-place restarts: only what died is started anew, in the same placement group. When they are used up, Serve
    replaces the replica."""

    max_attempts: NonNegativeInt = 3
    """Restarts in a row; 0 leaves every failure to Serve."""
    backoff_s: float = Field(default=0.5, ge=0, le=600)
    """Wait before the second restart in a row; doubles with each one after it. The first is immediate."""
    stable_after_s: float = Field(default=60.0, ge=0)
    """A generation that served this long ends the row. The second failure in a row replaces every rank."""
    frozen_after_s: float = Field(default=2.0, ge=0.5, le=3600)
    """A rank counts as dead after so many seconds without a sign of life, twice as many on another machine than the
    leader's, where a link may fail for a moment. Raise it to look at a rank in a debugger."""
    warm_spares: Literal[0, 1] = 0
    """1 keeps a process ready to take a dead rank's place, its imports done; of a model of one rank it holds the
    weights too, if there is memory for them. It costs about 0.3 GB (or as much as a rank), the resources of one more
    rank, and some seconds of CPU after the group is ready. On CPUs of one node only."""
    incident_folder: str | None = None
    """Where is kept what was known when ranks hung: the newest 20 incidents of this machine. Default:
    `$XDG_STATE_HOME/eagleray/incidents`, or `~/.local/state/eagleray/incidents`."""

    def pause_s(self, num_failures: int) -> float:
        """Seconds to wait after `num_failures` failures in a row."""
        return 0.0 if num_failures <= 1 else self.backoff_s * 2 ** (num_failures - 2)


class ReplicaGroupConfig(Config):
    """One copy of one model."""

    name: str = Field(min_length=1, max_length=200)
    """Public model name: what callers write into `model`."""
    model: ModelConfig
    """Which weights."""
    parallel: ParallelConfig = ParallelConfig()
    """How they are split."""
    cache: CacheConfig = CacheConfig()
    """KV memory."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """Step budgets."""
    placement: PlacementConfig = PlacementConfig()
    """Where the ranks run."""
    restart: RestartConfig = RestartConfig()
    """What happens when a rank dies."""
    weights: WeightsConfig = WeightsConfig()
    """How machines keep a model that is in an object store."""

    @property
    def engine(self) -> EngineConfig:
        """The part the engine reads."""
        return EngineConfig(model=self.model, parallel=self.parallel, cache=self.cache, scheduler=self.scheduler)
