"""NVIDIA GPUs: what the driver says of each, and what torch can do with them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from core.sizes import show_bytes
from deployments.doctor.finding import Finding, note, ok, problem, warning
from deployments.doctor.inside import Reply, ask, ask_python
from deployments.doctor.node import role

LEAST_CAPABILITY = (8, 0)
_CONTROL_DEVICE = Path("/dev/nvidiactl")
_FIELDS = "index,name,driver_version,compute_cap,memory.total,memory.used,mig.mode.current"
_FIELDS += ",ecc.errors.uncorrected.volatile.total"
_DRIVER_TIMEOUT_S = 20.0
_TORCH_TIMEOUT_S = 90.0
_IN_USE = 0.1
_TORCH = """
import json, torch
found = {"built_for": torch.version.cuda, "count": 0, "nccl": None, "error": "", "strangers": []}
try:
    torch.cuda.init()
    found["count"] = count = torch.cuda.device_count()
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    pairs = [(a, b) for a in range(count) for b in range(count) if a < b]
    found["strangers"] = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
except (RuntimeError, AssertionError) as error:
    found["error"] = str(error).splitlines()[0]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Card:
    """One GPU, as the driver knows it."""

    index: int
    name: str
    driver: str
    capability: tuple[int, int]
    total_bytes: int
    used_bytes: int
    is_divided: bool
    """MIG is on."""
    num_memory_errors: int
    """Uncorrected ones since the driver was loaded."""


@dataclass(frozen=True)
class TorchView:
    """What torch makes of the GPUs."""

    built_for: str | None
    """CUDA version; None: a CPU build."""
    num_cards: int
    nccl: str | None
    error: str
    """Why CUDA cannot be used; empty if it can."""
    strangers: tuple[tuple[int, int], ...]
    """Pairs of cards that cannot read each other's memory."""


@dataclass(frozen=True)
class GpuFacts:
    """GPUs of this machine."""

    has_device: bool
    """The driver's control device is there."""
    driver_error: str
    """Why nvidia-smi says nothing; empty if it does, or if there is none."""
    cards: tuple[Card, ...]
    torch: TorchView | None
    """None: not asked, because there is no GPU, or torch cannot be loaded."""
    has_triton: bool
    num_expected: int = 0
    """That node.json promises to the cluster."""


def gather() -> GpuFacts:
    """Return what driver and torch say; blocks for torch's start where there is a GPU."""
    reply = ask_driver()
    has_device = _CONTROL_DEVICE.exists()
    cards = read_cards(reply.output) if reply is not None else ()
    view = _ask_torch() if has_device or cards else None
    return GpuFacts(
        has_device, reply.error if reply else "", cards, view, find_spec("triton") is not None, _num_expected()
    )


def ask_driver() -> Reply | None:
    """Return nvidia-smi's table for `read_cards`; None if there is no such program."""
    return ask(["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"], _DRIVER_TIMEOUT_S)


def check(facts: GpuFacts) -> Iterator[Finding]:
    """Yield what is wrong with driver, cards, torch and the ways between cards."""
    if len(facts.cards) < facts.num_expected:
        yield problem(
            "node.gpu",
            f"node.json says num_gpus={facts.num_expected}, and the driver shows {len(facts.cards)}",
            "`dmesg | grep -i xid` says whether one has failed; have the machine replaced, or correct gpus_per_node",
        )
    if not facts.has_device and not facts.cards:
        if facts.driver_error:
            yield problem("node.gpu", f"nvidia-smi: {facts.driver_error}", _DRIVER_ADVICE)
        else:
            yield note("node.gpu", "no NVIDIA GPU: models run on the CPU")
        return
    if facts.driver_error:
        yield problem("node.gpu", f"nvidia-smi: {facts.driver_error}", _DRIVER_ADVICE)
    for card in facts.cards:
        yield from _card(card)
    if facts.torch is not None:
        yield from _torch(facts.torch, facts.has_triton)


_DRIVER_ADVICE = "install or reload the driver (a kernel update needs a reboot); `dmesg | grep -i nvrm` says more"


def _card(card: Card) -> Iterator[Finding]:
    found = f"GPU {card.index}, {card.name}, driver {card.driver}"
    if card.num_memory_errors:
        yield problem(
            "node.gpu_memory",
            f"{found}: {card.num_memory_errors} memory errors that could not be corrected",
            "drain this node and reset or replace the card; what it computes may be wrong",
        )
    if card.used_bytes > _IN_USE * card.total_bytes:
        yield warning(
            "node.gpu_memory",
            f"{found}: {show_bytes(card.used_bytes)} of {show_bytes(card.total_bytes)} are in use",
            "nvidia-smi names the processes; a model that is running here already is no fault",
        )
    if card.capability < LEAST_CAPABILITY:
        yield warning(
            "node.gpu",
            f"{found}: compute capability {card.capability[0]}.{card.capability[1]}; plain torch computes",
            "kernels need 8.0 (Ampere) or later; use such a card",
        )
    if card.is_divided:
        yield note("node.gpu", f"{found}: divided (MIG); tensor parallelism over parts of one card gains nothing")
    yield ok("node.gpu", f"{found}, {show_bytes(card.total_bytes)}")


def _torch(view: TorchView, has_triton: bool) -> Iterator[Finding]:
    if view.built_for is None:
        yield problem(
            "node.cuda",
            "there is a GPU, and torch is a build for CPUs",
            "pip install torch from the index of your CUDA version; without a constraints file for CPUs",
        )
        return
    if view.error:
        yield problem(
            "node.cuda",
            f"torch for CUDA {view.built_for} cannot use the GPU: {view.error}",
            "a driver that is too old: update it. `system not yet initialized`: start nvidia-fabricmanager. Else look "
            "at CUDA_VISIBLE_DEVICES and nvidia-smi",
        )
        return
    yield ok("node.cuda", f"torch for CUDA {view.built_for} sees {view.num_cards} GPUs, NCCL {view.nccl}")
    if not has_triton:
        yield warning("node.cuda", "triton is not installed: plain torch computes", "pip install triton")
    if view.strangers:
        pairs = ", ".join(f"{a}-{b}" for a, b in view.strangers[:8])
        yield warning(
            "node.gpu_peers",
            f"GPUs {pairs} cannot read each other's memory; sums of tensor parallelism go through the host",
            "keep a group on cards that can (`nvidia-smi topo -m`); virtual machines: have the host turn on "
            "peer access (ACS off)",
        )
    elif view.num_cards > 1:
        yield ok("node.gpu_peers", "every GPU reads every other one's memory")


def read_cards(text: str) -> tuple[Card, ...]:
    """Return the cards in nvidia-smi's table, one line each; a line that is no card is left out."""
    cards: list[Card] = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != len(_FIELDS.split(",")) or not parts[0].isdigit():
            continue
        index, name, driver, capability, total, used, mig, errors = parts
        major, _, minor = capability.partition(".")
        cards.append(
            Card(
                index=int(index),
                name=name,
                driver=driver,
                capability=(_number(major), _number(minor)),
                total_bytes=_number(total) * 2**20,
                used_bytes=_number(used) * 2**20,
                is_divided=mig == "Enabled",
                num_memory_errors=_number(errors),
            )
        )
    return tuple(cards)


def _num_expected() -> int:
    config = role.gather().config
    return config.num_gpus if config is not None else 0


def _number(text: str) -> int:
    # "[N/A]" where a card cannot say.
    return int(text) if text.isdigit() else 0


def _ask_torch() -> TorchView | None:
    return read_view(ask_python(_TORCH, (), _TORCH_TIMEOUT_S))


def read_view(reply: Reply) -> TorchView | None:
    """Return what torch said; None if it could not be loaded, which another probe reports."""
    if reply.error:
        return None
    said = json.loads(reply.output)
    strangers = tuple((a, b) for a, b in said["strangers"])
    return TorchView(said["built_for"], said["count"], said["nccl"], said["error"], strangers)
