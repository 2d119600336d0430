"""Microseconds from a token's id to the bytes of its event: ours, and what one writes first.

That is the tokenizer library's own stream decoder, and `json.dumps` of the whole event. Used by
`benchmarks.gateway_path`; one thread, in a loop, so caches are warm.
"""

import json
import time
from collections.abc import Callable

from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers.decoders import DecodeStream

from deployments.gateway.generation import Delta
from deployments.openai.completions import CompletionWriter
from deployments.openai.responses import ResponseMeta
from deployments.openai.schemas import CompletionRequest
from engine.text import TextStream
from engine.tokenizer import Tokenizer
from engine.tokenizer_files import find_tokenizer_files
from parallel.checkpoint.source import resolve_tokenizer

TOKEN_IDS = [500 + 37 * number % 20_000 for number in range(20_000)]
ROUNDS = 5


def measure_text(model: str) -> dict[str, float]:
    """Return the least microseconds per token of both ways over the rounds."""
    path = resolve_tokenizer(model, None)
    tokenizer = Tokenizer.load(path)
    library = LibraryTokenizer.from_file(str(find_tokenizer_files(path).tokenizer_json))
    request = CompletionRequest(model="bench", prompt="Hi", stream=True)
    writer = CompletionWriter(ResponseMeta("cmpl-0", 1, "bench"), request, [""], tokenizer)
    return {
        "ours_us_per_token": least_us(lambda: stream_ours(tokenizer, writer)),
        "library_and_json_us_per_token": least_us(lambda: stream_plainly(library)),
    }


def stream_ours(tokenizer: Tokenizer, writer: CompletionWriter) -> None:
    """Make an event of every token as the gateway does."""
    text = TextStream(tokenizer, [])
    for token_id in TOKEN_IDS:
        writer.event(Delta(0, text.push([token_id]).text, (), None))


def stream_plainly(library: LibraryTokenizer) -> None:
    """Make an event of every token from what is at hand."""
    stream = DecodeStream(skip_special_tokens=True)
    for token_id in TOKEN_IDS:
        choice = {"index": 0, "text": stream.step(library, token_id), "logprobs": None, "finish_reason": None}
        event = {"id": "cmpl-0", "object": "text_completion", "created": 1, "model": "bench", "choices": [choice]}
        f"data: {json.dumps(event)}\n\n".encode()


def least_us(work: Callable[[], None]) -> float:
    """Return microseconds of processor time per token of the fastest round."""
    times_s: list[float] = []
    for _ in range(ROUNDS):
        began_s = time.thread_time()
        work()
        times_s.append(time.thread_time() - began_s)
    return round(1e6 * min(times_s) / len(TOKEN_IDS), 2)
