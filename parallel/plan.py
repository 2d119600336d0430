"""What the leader tells every rank to do in one step, and what rank 0 answers.

Ranks keep a row for each running request: its token ids, block table and sampling state. A plan is a delta to those
rows followed by the chunks to compute, so a steady decode step is a handful of bytes. Every rank samples the same
token (candidates are gathered, random numbers are counter-based), so no token has to be sent back to the ranks.

Order inside a step: freed rows, started rows, appended blocks, then the chunks. A chunk `(row, n)` computes the `n`
tokens that follow the row's computed tokens. When it reaches the end of the row's known tokens, the row samples one
token, which is appended to the row.

What every running request has a part in each step (rows that decode, tokens that were sampled) crosses as packed
integers, because both ends keep it in arrays; what few have crosses as structs.
"""

from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import ErrorInfo
from parallel.sampling.params import SamplingParams

_PACKED = np.dtype("<i4")


def pack_integers(values: ArrayLike) -> bytes:
    """Return integers as 32-bit little-endian bytes."""
    return np.asarray(values, _PACKED).tobytes()


def unpack_integers(packed: bytes) -> NDArray[np.int32]:
    """Return what `pack_integers` packed; read-only."""
    return np.frombuffer(packed, _PACKED)


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
    decodes: bytes = b""
    """Packed rows that compute one token each, in the batch before `chunks`."""


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


class SampledTokens(msgspec.Struct, frozen=True, array_like=True):
    """One token for each chunk that reached the end of its row's tokens, in chunk order."""

    rows: bytes = b""
    """Packed."""
    token_ids: bytes = b""
    """Packed."""
    remarks: list[RowToken] = []
    """Those of them that have logprobs or an error."""

    @classmethod
    def of(cls, tokens: Iterable[RowToken]) -> "SampledTokens":
        """Return the tokens packed."""
        every = list(tokens)
        return cls(
            pack_integers([token.row for token in every]),
            pack_integers([token.token_id for token in every]),
            [token for token in every if token.logprobs is not None or token.error is not None],
        )

    def unpack(self) -> list[RowToken]:
        """Return one entry a row; for tests and tools, the engine reads the arrays."""
        remarks = {token.row: token for token in self.remarks}
        pairs = zip(unpack_integers(self.rows).tolist(), unpack_integers(self.token_ids).tolist(), strict=True)
        return [remarks.get(row) or RowToken(row, token_id) for row, token_id in pairs]


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """Rank 0's answer."""

    step: int
    sampled: SampledTokens
    rank_time_s: float
    """Seconds the rank spent on the step."""

    @property
    def tokens(self) -> list[RowToken]:
        """One entry a sampled row; see SampledTokens.unpack."""
        return self.sampled.unpack()
