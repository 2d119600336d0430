"""The rank channel's vocabulary: one TCP connection from each rank's process to its leader, msgpack frames.

    process -> leader   Arrived, then in each generation it is enlisted for:
                        Joined, Listening (rank 0), Progress*, Loaded, then Result per plan (rank 0), RankPace now and
                        then, RankError any time
    leader -> process   Enlist, Rendezvous, Load, then StepPlan*, and again from Enlist when the group breaks; Shutdown

Enlist ends whatever went before. What a process said before its Joined answers an Enlist belongs to a generation that
is over, so the leader throws it away: that is all it takes to keep late results out. A process whose error is of its
own making ends after RankError; one that only lost its peers (`rank_died`) waits for the next Enlist. A broken
connection means that the process is dead.

A second connection, the pulse, says nothing but that the process lives (parallel/rank/pulse.py).
"""

import msgspec

from core.errors import ErrorInfo
from core.progress import Progress
from parallel.formats.kinds import Quantization
from parallel.ops.choice import OpChoice
from parallel.plan import StepPlan, StepResult


class RankSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank's process needs to find its leader; crosses by stdin or an actor argument, never a command line."""

    seat: int
    """Where it runs, of the places that the launcher has: a bundle, a GPU. Which rank it is, Enlist says."""
    world_size: int
    leader_host: str
    leader_port: int
    secret: bytes
    device: str
    """`cpu` or `cuda` (the process sees only its own GPU)."""
    num_threads: int
    """CPU threads of this rank."""
    collective_timeout_s: float = 30.0


class CpuShare(msgspec.Struct, frozen=True, array_like=True):
    """What a rank's process really has of its machine's cores, whatever it was meant to have."""

    num_threads: int
    """Threads that compute."""
    num_cores: int
    """Cores they may keep busy: affinity and control group's quota."""
    niceness: int
    """0 is normal; above, others come first."""


class Arrived(msgspec.Struct, frozen=True, tag=True):
    """First message of a process: its imports are done."""

    seat: int
    pid: int


class Pulse(msgspec.Struct, frozen=True, tag=True):
    """First and only message of a process's other connection; what follows are the frames of parallel/rank/pulse.py."""

    seat: int
    needs_gil: bool
    """Whether it may be late while other Python code of the process holds the interpreter lock."""


class Enlist(msgspec.Struct, frozen=True, tag=True):
    """Forget the group you are in, if any, and be this rank of another; answer Joined."""

    rank: int
    generation: int
    """Counts the groups that were formed of these ranks; grows."""


class Joined(msgspec.Struct, frozen=True, tag=True):
    """The answer to Enlist."""

    rank: int
    generation: int
    pid: int
    host: str
    """Address other ranks reach this one by."""
    node: str
    """Same for ranks that share a machine's memory."""
    device: str
    total_memory_bytes: int
    free_memory_bytes: int
    """Of the GPU, or of the node for `cpu`, before the process loaded anything."""
    tier: str = "torch"
    """The fastest set of operations that this machine has: `torch`, `cpu` or `cuda`."""
    fp8_obstacle: str = "it runs on cpu"
    """Why this rank cannot multiply fp8; empty if it can."""
    cpu: CpuShare | None = None
    """None where the rank is in the leader's own process."""


class Rendezvous(msgspec.Struct, frozen=True, tag=True):
    """Where the group meets. Rank 0 gets port 0, opens the store, and answers Listening; the others get its address."""

    host: str
    port: int


class Listening(msgspec.Struct, frozen=True, tag=True):
    """Rank 0's rendezvous store is open."""

    port: int


class Load(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Read weights, allocate the KV cache, warm up."""

    model: str
    """Local folder, GGUF file or hub id."""
    revision: str | None
    dtype: str
    """float32, bfloat16 or float16."""
    quantization: Quantization = "auto"
    kv_dtype: str
    """As `dtype`, or int8."""
    num_blocks: int
    block_size: int
    max_rows: int
    max_model_len: int
    max_step_tokens: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The rank has its weights, an empty KV cache, and has run a warm-up step."""

    rank: int
    weight_bytes: int
    kv_bytes: int
    load_time_s: float
    ops: list[OpChoice] = []
    """Which tier runs each operation on this rank."""


class RankError(msgspec.Struct, frozen=True, tag=True):
    """The rank cannot go on in this generation; `traceback` is for the leader's log only."""

    rank: int
    """Its seat if it was never enlisted."""
    error: ErrorInfo
    traceback: str = ""


class RankProgress(msgspec.Struct, frozen=True, tag=True):
    """Carries Progress."""

    progress: Progress


class Plan(msgspec.Struct, frozen=True, tag=True):
    """Carries a StepPlan."""

    plan: StepPlan


class Result(msgspec.Struct, frozen=True, tag=True):
    """Carries rank 0's StepResult."""

    result: StepResult


class RankPace(msgspec.Struct, frozen=True, tag=True):
    """The steps of one rank in this generation so far; said now and then, by every rank."""

    rank: int
    num_steps: int
    total_s: float
    """From a plan's launch to its end, waits for other ranks included."""


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave the group and exit 0."""


FromRank = Arrived | Pulse | Joined | Listening | RankProgress | Loaded | Result | RankPace | RankError
ToRank = Enlist | Rendezvous | Load | Plan | Shutdown
