"""What transformers says: the oracle for logits and greedy tokens."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def load_reference(path: Path) -> PreTrainedModel:
    """Return transformers' float32 model of a checkpoint folder, or of a Llama .gguf file as transformers reads it."""
    if path.is_dir():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    # from_pretrained(gguf_file=...) does the same, but insists on `accelerate`.
    fields = load_gguf_checkpoint(str(path))["config"]
    assert fields.pop("model_type") == "llama"
    with torch.device("meta"):
        shape = LlamaForCausalLM(LlamaConfig(**fields))
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=shape, torch_dtype=torch.float32)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    missing, unexpected = model.load_state_dict(tensors["tensors"], strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    return model.eval()


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """Return logits_TV of all positions."""
    return model(torch.tensor([list(tokens)])).logits[0]


@torch.inference_mode()
def reference_greedy(model: PreTrainedModel, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Return the `num_tokens` most likely tokens after `prompt`, going on after an end of text."""
    tokens: list[int] = []
    chunk, cache = list(prompt), None
    for _ in range(num_tokens):
        output = model(torch.tensor([chunk]), past_key_values=cache, use_cache=True)
        chunk, cache = [int(output.logits[0, -1].argmax())], output.past_key_values
        tokens += chunk
    return tokens
