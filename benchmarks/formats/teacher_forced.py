"""Logits after every token of a given text, computed by the steps of serving: chunks of a prompt, then token by token.

T tokens of the text, V vocabulary rows on this rank.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.formats.settings import Setting
from parallel.groups.base import TPGroup
from parallel.plan import Chunk, RowStart
from parallel.rank.forward import Forward, OpByOp
from parallel.rank.loading import LoadedModel, load_model
from parallel.rank.messages import Load
from parallel.rank.rows import RowTable
from parallel.rank.stepping import DirectRunner
from parallel.sampling.params import SamplingParams

BLOCK_SIZE = 16
CHUNK_TOKENS = 128
DECODED_SHARE = 4
"""One token in so many is computed in a step of its own, the last ones of the text."""
CPU = torch.device("cpu")


class TextLogits(NamedTuple):
    """What one rank computed, and in how much memory."""

    logits: Tensor
    """TV."""
    weight_bytes: int
    kv_bytes_per_token: int
    tier: str


def text_logits(
    source: str, setting: Setting, group: TPGroup, token_ids: Sequence[int], device: torch.device = CPU
) -> TextLogits:
    """Return the logits after each token, in float32 on the CPU. A collective."""
    num_blocks = -(-len(token_ids) // BLOCK_SIZE)
    load = Load(
        model=source,
        revision=None,
        dtype=setting.dtype,
        quantization=setting.quantization,
        kv_dtype=setting.kv_dtype,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_rows=1,
        max_model_len=len(token_ids),
        max_step_tokens=CHUNK_TOKENS,
    )
    loaded = load_model(load, group, device, lambda done, total, detail: None)
    return TextLogits(
        _run(loaded, token_ids, device),
        loaded.model.weight_bytes,
        loaded.kv.num_bytes // (num_blocks * BLOCK_SIZE),
        next(choice.tier for choice in loaded.choices if choice.op == "step"),
    )


@torch.inference_mode()
def _run(loaded: LoadedModel, token_ids: Sequence[int], device: torch.device) -> Tensor:
    forward = _forward(loaded, device)
    rows = RowTable(1, len(token_ids), BLOCK_SIZE)
    # Last block first: nothing may depend on blocks lying in order.
    block_ids = list(range(-(-len(token_ids) // BLOCK_SIZE)))[::-1]
    rows.start(RowStart(0, list(token_ids), len(token_ids), 0, block_ids, SamplingParams(max_tokens=1, seed=0)))
    parts: list[Tensor] = []
    for num_tokens in _steps(len(token_ids)):
        inputs = replace(rows.step([Chunk(0, num_tokens)]), last_token_S=np.arange(num_tokens))
        parts.append(forward.logits(inputs).to(CPU, copy=True))
    return torch.cat(parts)


def _forward(loaded: LoadedModel, device: torch.device) -> Forward:
    if isinstance(loaded.runner, DirectRunner):
        return loaded.runner.forward
    # A GPU's runner leaves the logits to the sampler in its graphs, under which lie the same operations.
    return OpByOp(loaded.model, loaded.kv, device)


def _steps(num_tokens: int) -> list[int]:
    """Return how many tokens each step computes."""
    num_decoded = num_tokens // DECODED_SHARE
    whole, rest = divmod(num_tokens - num_decoded, CHUNK_TOKENS)
    return [CHUNK_TOKENS] * whole + ([rest] if rest else []) + [1] * num_decoded
