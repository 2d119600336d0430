"""Our models against transformers, in float32: tiny random checkpoints on real ranks, and the real SmolLM2."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from parallel.groups.solo import SoloGroup
from tests.support.checkpoints import LLAMA3_ROPE, make_checkpoint, smollm2_gguf
from tests.support.model_runner import PROMPTS, ModelRunner, greedy
from tests.support.parity_ranks import logits_of_ranks
from tests.support.reference import load_reference, reference_greedy, reference_logits

pytestmark = pytest.mark.integration

MAX_DIFFERENCE = 1e-4
"""The issue asks for 1e-3; what is left is the order of float32 additions."""


class Case(NamedTuple):
    """A tiny checkpoint and the numbers of ranks it is split over."""

    architecture: str
    overrides: dict[str, Any]
    world_sizes: tuple[int, ...] = (1, 2, 4)


LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
NINE_HEADS = {"hidden_size": 72, "head_dim": 8, "num_attention_heads": 9, "num_key_value_heads": 3}

CAPITAL_OF_FRANCE = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]

# Two KV heads over four ranks: each is held twice. Nine heads in three groups over two ranks: two groups and one.
CASES = {
    "llama": Case("LlamaForCausalLM", {}),
    "llama3-rope": Case("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE}),
    "llama-tied-linear-rope": Case("LlamaForCausalLM", {"rope_parameters": LINEAR_ROPE, "tie_word_embeddings": True}),
    "llama-all-biases": Case("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-nine-heads": Case("LlamaForCausalLM", NINE_HEADS | {"tie_word_embeddings": True}, (1, 2, 3)),
    "llama-four-groups-on-three": Case("LlamaForCausalLM", {"num_attention_heads": 8, "num_key_value_heads": 4}, (3,)),
    "mistral": Case("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": Case("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": Case("Qwen3ForCausalLM", {}),
    "qwen3-bias": Case("Qwen3ForCausalLM", {"attention_bias": True, "head_dim": 32}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: make_checkpoint(case.architecture, root / name, **case.overrides) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def expected(checkpoints: dict[str, Path]) -> dict[str, dict[int, torch.Tensor]]:
    references = {name: load_reference(path) for name, path in checkpoints.items()}
    return {
        name: {row: reference_logits(reference, tokens) for row, tokens in PROMPTS.items()}
        for name, reference in references.items()
    }


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_logits_of_every_architecture_equal_transformers(world_size, checkpoints, expected, tmp_path):
    chosen = {name: checkpoints[name] for name, case in CASES.items() if world_size in case.world_sizes}
    logits = logits_of_ranks(chosen, world_size, tmp_path)
    differences = {
        f"{name} row {row}": float((logits[name][row] - expected[name][row]).abs().max())
        for name in chosen
        for row in PROMPTS
    }
    worst = max(differences, key=lambda name: differences[name])
    assert differences[worst] <= MAX_DIFFERENCE, f"{worst} differs by {differences[worst]:.2e}"


def test_smollm2_continues_a_text_as_transformers_does():
    gguf = smollm2_gguf()
    tokens = greedy(ModelRunner.load(gguf, SoloGroup()), CAPITAL_OF_FRANCE, 32)
    assert tokens == reference_greedy(load_reference(gguf), CAPITAL_OF_FRANCE, 32)
