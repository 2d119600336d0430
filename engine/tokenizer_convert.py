"""The child process of tokenizer_files.py: `python -m engine.tokenizer_convert SOURCE TARGET`. Imports torch.

Writes tokenizer.json, tokenizer_config.json and chat_template.jinja of a GGUF file, or of a folder that has a slow
tokenizer only, as transformers understands it; of a GGUF file also generation_config.json with the tokens that end it.
"""

import json
import mmap
import sys
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from parallel.checkpoint.fields import Fields
from parallel.checkpoint.gguf_header import read_gguf_header
from parallel.checkpoint.gguf_names import eos_token_ids_of_gguf


def convert(source: Path, target: Path) -> None:
    """Write the tokenizer of `source` into the new folder `target`."""
    if source.is_dir():
        AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False).save_pretrained(target)
        return
    metadata = _metadata(source)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    _correct_splitting(tokenizer.backend_tokenizer, metadata.text_or_none("tokenizer.ggml.pre"))
    tokenizer.save_pretrained(target)
    ends = json.dumps({"eos_token_id": eos_token_ids_of_gguf(metadata)})
    (target / "generation_config.json").write_text(ends, encoding="utf-8")


def _metadata(source: Path) -> Fields:
    with (
        source.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        return Fields(read_gguf_header(source, view).metadata, str(source))


def _correct_splitting(tokenizer: Tokenizer, name: str | None) -> None:
    # transformers 5.23 gives vocabularies it has no rule for GPT-2's splitting. SmolLM's splits every digit first
    # (llama.cpp `LLAMA_VOCAB_PRE_TYPE_SMOLLM`, and the model's own tokenizer.json).
    if name == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
