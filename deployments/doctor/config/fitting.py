"""Whether a model can be split as asked and fits the memory of its ranks, by the leader's own arithmetic."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.preflight import check_model
from core.errors import StartupError
from core.sizes import show_bytes
from deployments.config import ModelArgs
from deployments.doctor.config.hardware import Hardware
from deployments.doctor.config.reading import ModelApplication
from deployments.doctor.finding import Finding, note, ok, problem
from engine.memory import MemoryPlan
from parallel.checkpoint.reader import Checkpoint, open_checkpoint
from parallel.rank.messages import Joined
from parallel.sharding import ShardPlan

_CARDS_GB = (16, 24, 32, 40, 48, 80, 96, 141, 180, 288)
"""Sizes in which GPUs are sold, in GB as their makers count."""


@dataclass(frozen=True)
class Fit:
    """One copy of a model on given devices."""

    plan: MemoryPlan | None
    """None: it does not fit."""
    error: str


def check(model: ModelApplication, path: Path, hardware: Hardware) -> Iterator[Finding]:
    """Yield whether files, heads and memory agree; reads the checkpoint's headers."""
    name, here = model.application, model.args.model.model_copy(update={"source": str(path), "revision": None})
    args = model.args.model_copy(update={"model": here})
    try:
        check_model(args, lambda _: None)
        checkpoint = open_checkpoint(path)
    except StartupError as error:
        yield problem("config.checkpoint", f"{name}: {error.message}", "the model cannot start; correct this first")
        return
    spec = checkpoint.spec
    kind = "GGUF" if path.suffix == ".gguf" else "safetensors"
    yield ok(
        "config.checkpoint", f"{name}: {spec.architecture} in {kind}, {spec.dtype}, {len(checkpoint.tensors)} tensors"
    )
    yield _heads(name, args, checkpoint)
    yield from _memory(name, args, checkpoint, hardware)


def _heads(name: str, args: ModelArgs, checkpoint: Checkpoint) -> Finding:
    size, spec = args.parallel.tensor_parallel_size, checkpoint.spec
    heads = f"{spec.num_heads} query and {spec.num_kv_heads} KV heads"
    if size == 1:
        return ok("config.split", f"{name}: {heads} on one rank")
    shares = ShardPlan.of(spec, size).ranks
    counts = sorted({len(share.query_heads) for share in shares})
    if len(counts) > 1:
        return note(
            "config.split",
            f"{name}: {heads} over {size} ranks do not divide: {counts[0]} to {counts[-1]} query heads a rank",
            "it works, evened out by feed-forward columns; a size that divides wastes less",
        )
    if size > spec.num_kv_heads:
        return note(
            "config.split", f"{name}: {heads} over {size} ranks: each KV head is on {size // spec.num_kv_heads}"
        )
    return ok("config.split", f"{name}: {heads} over {size} ranks, {counts[0]} query heads each")


def _memory(name: str, args: ModelArgs, checkpoint: Checkpoint, hardware: Hardware) -> Iterator[Finding]:
    num_ranks = args.parallel.tensor_parallel_size
    if not hardware.runs_on_gpu(args.parallel.device):
        yield _fit_finding(name, fit(args, checkpoint, hardware.cpu_ranks(num_ranks)), "this machine's memory")
    elif len(hardware.cards) >= num_ranks:
        yield _fit_finding(name, fit(args, checkpoint, hardware.gpu_ranks(num_ranks)), "this machine's GPUs")
    else:
        yield _smallest_card(name, args, checkpoint)


def fit(args: ModelArgs, checkpoint: Checkpoint, ranks: Sequence[Joined]) -> Fit:
    """Return the leader's plan for these ranks, or why there is none."""
    shard_plan = ShardPlan.of(checkpoint.spec, args.parallel.tensor_parallel_size)
    config = args.engine
    devices = {rank.device for rank in ranks}
    config = config.model_copy(update={"scheduler": config.scheduler.settled(devices)})
    try:
        return Fit(MemoryPlan.of(config, checkpoint.spec, checkpoint.tensors, shard_plan, ranks), "")
    except StartupError as error:
        return Fit(None, error.message)


def _fit_finding(name: str, fit: Fit, where: str) -> Finding:
    if fit.plan is None:
        return problem("config.memory", f"{name}: {fit.error}", f"it does not fit {where}")
    return ok("config.memory", f"{name}: {fit.plan.explain()}")


def _smallest_card(name: str, args: ModelArgs, checkpoint: Checkpoint) -> Finding:
    """Return which GPUs would do, where there are none to ask."""
    error = ""
    for size in _CARDS_GB:
        found = fit(args, checkpoint, Hardware.of_cards(size * 10**9, args.parallel.tensor_parallel_size))
        error = found.error
        if found.plan is not None:
            rank = found.plan.ranks[0]
            tokens = found.plan.num_blocks * found.plan.block_size
            return note(
                "config.memory",
                f"{name}: fits GPUs of {size} GB or more; there, weights take {show_bytes(rank.weight_bytes)} a rank, "
                f"and KV blocks hold {tokens} tokens",
                "this machine has not that many GPUs, so its own were not judged",
            )
    return problem("config.memory", f"{name}: {error}", "no GPU that is sold holds it so; use more ranks, or int8")
