"""The Ray actor around one rank: a process of its own, so that a crash or a held GIL stays in it."""

from cluster.weights.config import WeightsConfig
from cluster.weights.model_files import ModelFiles
from core.logs import configure_logging
from parallel.rank.messages import RankSpec


class RankActor:
    """Wrapped by `ray.remote` in ray_launcher; everything after `run` goes over the rank channel, not over Ray."""

    def run(self, spec: RankSpec, weights: WeightsConfig) -> int:
        """Be a rank until the leader ends it, return its exit code; blocks for as long as this process may live.

        `weights`: how this machine keeps what it fetches.
        """
        # Imported here: the leader imports this module too, and must not load torch.
        from parallel.rank.loop import run_rank

        # What goes well the leader says.
        configure_logging("WARNING", rank=spec.seat)
        return run_rank(spec, ModelFiles(weights).locate)
