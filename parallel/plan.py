"""What the leader tells every rank to do in one step, and what rank 0 answers.

Ranks keep a row for each running request: its token ids, block table and sampling state. A plan is a delta to those
rows followed by the chunks to compute, so a steady decode step is a handful of bytes. Every rank samples the same
token (candidates are gathered, random numbers are counter-based), so no token has to be sent back to the ranks.

Order inside a step: freed rows, started rows, appended blocks, then the chunks. A chunk `(row, n)` computes the `n`
tokens that follow the row's computed tokens. When it reaches the end of the row's known tokens, the row samples one
token, which is appended to the row.
"""

import msgspec

from core.errors import ErrorInfo
from parallel.sampling.params import SamplingParams


class RowStart(msgspec.Struct, frozen=True, array_like=True):
    """A request takes a row."""

    row: int
    token_ids: list[int]
    """Prompt, then what was already generated (after a preemption or a resume)."""
    num_prompt_tokens: int
    num_computed_tokens: int
    """Leading tokens whose KV is already in `block_ids` (prefix-cache hit)."""
    block_ids: list[int]
    sampling: SamplingParams


class BlocksAppended(msgspec.Struct, frozen=True, array_like=True):
    """A row's block table grows at its end."""

    row: int
    block_ids: list[int]


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A row computes its next `num_tokens` tokens in this step."""

    row: int
    num_tokens: int


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    """One step, the same for every rank."""

    step: int
    chunks: list[Chunk] | None
    """In batch order; None repeats the rows of the previous plan with one token each (steady decode)."""
    freed: list[int] = []
    started: list[RowStart] = []
    appended: list[BlocksAppended] = []


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities of one generated position, from the model's own distribution."""

    logprob: float
    """Of the chosen token."""
    top_ids: list[int]
    """Most likely tokens, best first."""
    top_logprobs: list[float]


class RowToken(msgspec.Struct, frozen=True, array_like=True):
    """What one row sampled; `error` instead of a token when this request alone failed (its logits were not finite)."""

    row: int
    token_id: int
    logprobs: TokenLogprobs | None = None
    error: ErrorInfo | None = None


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """Rank 0's answer: one entry for each chunk that reached the end of its row's tokens, in chunk order."""

    step: int
    tokens: list[RowToken]
    rank_time_s: float
    """Seconds the rank spent on the step."""
