"""What enters the engine and what leaves it: token ids, never text."""

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from core.errors import ErrorInfo
from engine.figures import EngineFigures
from engine.request_timings import RequestTimings
from engine.step_costs import StepCosts
from parallel.plan import TokenLogprobs
from parallel.sampling.params import SamplingParams

FinishReason = Literal["stop", "length", "cancelled"]


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One prompt and the wish for one completion."""

    request_id: str
    token_ids: list[int]
    """The prompt, then tokens already emitted to the client if this continues a broken stream."""
    num_prompt_tokens: int
    """Where the prompt ends in `token_ids`; max_tokens, min_tokens and penalties count from here."""
    sampling: SamplingParams
    priority: int = 0
    """Lower runs first."""
    deadline_s: float | None = None
    """Seconds from submission after which the request is ended with DeadlineExceeded."""
    waited_s: float = 0.0
    """Seconds its caller has waited for the next token already; its place in line is that of so long ago."""
    cache_salt: str = ""
    """Requests of different salts never share cached KV blocks."""
    tenant: str = ""
    """Who sent it; while requests wait, tenants take turns. Empty: `cache_salt` tells tenants apart."""

    @property
    def tenant_key(self) -> str:
        """What tells its tenant from others."""
        return self.tenant or self.cache_salt

    @property
    def is_resumed(self) -> bool:
        """Whether it continues a stream that broke."""
        return len(self.token_ids) > self.num_prompt_tokens


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """What one step did for one request. Exactly one event of a request is terminal."""

    request_id: str
    token_ids: list[int]
    """New tokens; a stop token that ended the request is not among them."""
    finish_reason: FinishReason | None = None
    error: ErrorInfo | None = None
    logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache; set on the first event."""
    stop_token_id: int | None = None
    """The token that ended the request, if one did."""
    timings: RequestTimings | None = None
    """Of the request so far, in this group; set on the first event and on the terminal one."""

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows for this request."""
        return self.finish_reason is not None or self.error is not None


class StepEvents(msgspec.Struct, frozen=True, array_like=True):
    """What the engine has for one consumer after a step. Iterate for one event a request, or read the parts.

    Nearly every token of a busy engine is neither the first nor the last of its request and comes without logprobs.
    Such tokens are not worth an object each: they come as two parallel lists, and precede `events`.
    """

    request_ids: list[str] = []
    """Requests that got one token and have nothing else to tell."""
    token_ids: list[int] = []
    """Their tokens."""
    events: list[TokenEvent] = []
    """First tokens, ends, tokens with logprobs."""

    def __iter__(self) -> Iterator[TokenEvent]:
        for request_id, token_id in zip(self.request_ids, self.token_ids, strict=True):
            yield TokenEvent(request_id, [token_id])
        yield from self.events


EventSink = Callable[[StepEvents], None]
"""Takes what the engine has for one consumer; called on the engine thread, must not block or raise."""


class Placement(msgspec.Struct, frozen=True, array_like=True):
    """A request that a model copy has just accepted, as far as routers care. Load reports count it from then on."""

    num_uncached_tokens: int
    """Tokens to be computed before the first new one; known prefix hits are not among them."""
    num_tokens: int
    """All it came with, prefix hits included."""
    max_tokens: int
    """Most tokens it may still generate."""

    @classmethod
    def of(cls, request: GenerationRequest) -> "Placement":
        """Return that of a request of which nothing is cached."""
        num_tokens = len(request.token_ids)
        return cls(num_tokens, num_tokens, request.sampling.max_tokens - (num_tokens - request.num_prompt_tokens))


class EngineLoad(msgspec.Struct, frozen=True, array_like=True):
    """How busy one model copy is; routers and metrics read it."""

    num_running: int
    num_waiting: int
    num_outstanding_tokens: int
    """Prefill tokens not yet computed plus tokens that may still be generated, over all requests."""
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    """Unreferenced but still holding a prefix; free in effect."""
    num_steps: int
    num_preemptions: int
    num_generated_tokens: int
    num_prompt_tokens: int
    num_cached_prompt_tokens: int
    num_uncached_tokens: int = 0
    """Prompt tokens of accepted requests that still have to be computed; known prefix hits are not among them."""
    num_kv_tokens: int = 0
    """Tokens of running requests whose keys and values are resident."""
    max_step_tokens: int = 0
    """Most tokens a step may process."""
    step_costs: StepCosts | None = None
    """Learned from recent steps; None until there were enough."""
    max_kv_tokens: int = 0
    """Tokens whose keys and values fit into all blocks."""
    wait_s: float = 0.0
    """How long a request behind all others would wait before it is computed, as predicted; 0 while that is unknown."""
    figures: EngineFigures | None = None
    """What operators want to know besides."""

    @property
    def num_held_blocks(self) -> int:
        """Blocks that requests hold; cached ones are free in effect."""
        return self.num_blocks - self.num_free_blocks - self.num_cached_blocks
