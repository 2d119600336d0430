"""Every format says nearly what float32 says about a plain English text, on a GPU.

As tests/integration/test_format_quality.py for CPUs. Allowed is what the CPU kernels are allowed, though inputs are
rounded less here; for fp8, whose inputs have 4 bits of precision, it is a first guess and not measured yet.
"""

import pytest
import torch

from benchmarks.formats.divergence import divergence
from benchmarks.formats.settings import SETTINGS, TEXT, Setting
from benchmarks.formats.teacher_forced import text_logits
from engine.tokenizer import Tokenizer
from parallel.groups.solo import SoloGroup
from tests.support.checkpoints import smollm2_gguf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NUM_TOKENS = 256
ALLOWED = {
    SETTINGS["bfloat16"]: 0.003,
    SETTINGS["bfloat16, KV int8"]: 0.004,
    SETTINGS["int8"]: 0.008,
    SETTINGS["the file's own"]: 0.006,
    SETTINGS["the file's own, KV int8"]: 0.007,
    Setting("bfloat16", "fp8", "bfloat16"): 0.05,
}
"""Most mean KL divergence."""


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    return Tokenizer.load(smollm2_gguf()).encode(TEXT.read_text(encoding="utf-8"))[:NUM_TOKENS]


@pytest.fixture(scope="module")
def exact(token_ids: list[int]) -> torch.Tensor:
    return text_logits(str(smollm2_gguf()), SETTINGS["float32"], SoloGroup(), token_ids).logits


@pytest.mark.parametrize("setting", ALLOWED, ids=str)
def test_a_format_says_nearly_what_float32_says(setting: Setting, token_ids: list[int], exact: torch.Tensor) -> None:
    found = text_logits(str(smollm2_gguf()), setting, SoloGroup(), token_ids, torch.device("cuda"))
    assert found.tier == "cuda"
    assert divergence(exact, found.logits, token_ids).mean_kl < ALLOWED[setting]
