"""The seam between a rank and what it computes with."""

from typing import NamedTuple, Protocol

from parallel.groups.base import TPGroup
from parallel.kv_cache import KVCache
from parallel.models.decoder import CausalLM
from parallel.ops.base import Ops
from parallel.ops.choice import OpChoice
from parallel.rank.stepping import StepRunner


class StepLimits(NamedTuple):
    """The largest steps there will be."""

    max_rows: int
    max_blocks: int
    """Of a row."""


class RunChoice(NamedTuple):
    """How steps are run, and which tier each operation got."""

    runner: StepRunner
    choices: list[OpChoice]


class Tier(Protocol):
    """The operations of one kind of machine, and the fastest way to a step through them."""

    @property
    def ops(self) -> Ops:
        """What the model is built of."""
        ...

    def runner(self, model: CausalLM, kv: KVCache, group: TPGroup, limits: StepLimits) -> RunChoice:
        """Return what runs the steps of a loaded model. A collective."""
        ...
