"""What the replicas of a config take together, and whether this machine has it."""

from collections.abc import Iterator
from typing import NamedTuple

from cluster.placement import rank_resources
from deployments.doctor.config.hardware import Hardware
from deployments.doctor.config.reading import Copies, ModelApplication, ServeConfig
from deployments.doctor.finding import Finding, note, ok, warning


class Demand(NamedTuple):
    """What Ray reserves."""

    cpus: float
    gpus: float

    def times(self, number: int) -> "Demand":
        """Return that of so many."""
        return Demand(number * self.cpus, number * self.gpus)

    def plus(self, other: "Demand") -> "Demand":
        """Return that of both."""
        return Demand(self.cpus + other.cpus, self.gpus + other.gpus)

    def describe(self) -> str:
        """Return it in words."""
        return f"{self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")


def of_replica(model: ModelApplication, hardware: Hardware) -> Demand:
    """Return what one replica group takes: its leader, its ranks, its spare."""
    args = model.args
    rank = rank_resources(args.placement, "cuda" if hardware.runs_on_gpu(args.parallel.device) else "cpu")
    num_ranks = args.parallel.tensor_parallel_size + args.restart.warm_spares
    ranks = Demand(rank["CPU"], rank.get("GPU", 0.0)).times(num_ranks)
    return _one(model.copies).plus(ranks)


def check(config: ServeConfig, hardware: Hardware) -> Iterator[Finding]:
    """Yield the cost of a replica of each model, and whether all that must run fits this machine."""
    total = most = Demand(0.0, 0.0)
    for gateway in config.gateways:
        total = total.plus(_one(gateway.copies).times(gateway.copies.least))
        most = most.plus(_one(gateway.copies).times(gateway.copies.most))
    for model in config.models:
        one = of_replica(model, hardware)
        total, most = total.plus(one.times(model.copies.least)), most.plus(one.times(model.copies.most))
        ranks = model.args.parallel.tensor_parallel_size
        yield note("config.cost", f"{model.application}: one replica is {ranks} ranks and reserves {one.describe()}")
    yield from _room(total, most, hardware)


def _room(total: Demand, most: Demand, hardware: Hardware) -> Iterator[Finding]:
    here = Demand(float(hardware.num_cores), float(len(hardware.cards)))
    if _is_over(total, here):
        yield warning(
            "config.room",
            f"everything that must run reserves {total.describe()}; this machine has {here.describe()}",
            "serve it on a cluster with room, or lower num_replicas, tensor_parallel_size or placement.cpus_per_rank",
        )
    elif _is_over(most, here):
        yield note(
            "config.room",
            f"scaled up it reserves {most.describe()}; this machine has {here.describe()}",
            "groups beyond that wait until the cluster has room",
        )
    else:
        yield ok("config.room", f"everything reserves {most.describe()} of {here.describe()}")


def _one(copies: Copies) -> Demand:
    return Demand(copies.cpus, copies.gpus)


def _is_over(demand: Demand, room: Demand) -> bool:
    return demand.cpus > room.cpus or demand.gpus > room.gpus
