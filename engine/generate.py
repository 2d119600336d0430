"""`python -m engine.generate --model MODEL "prompt"`: load a model without Ray or HTTP and stream what it says.

Text goes to standard output, progress and figures to standard error. Several prompts are answered one after another,
so that a shared beginning is found in the prefix cache.
"""

import argparse
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import msgspec

from core.cores import usable_cores
from core.errors import EaglerayError, InvalidRequest, ReplicaFailed, RequestError, StartupError
from core.progress import Progress
from engine.config import EngineConfig, ParallelConfig
from engine.engine import Engine, start_engine
from engine.rank_pools.local_launcher import LocalLauncher
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from engine.request import GenerationRequest, StepEvents
from engine.text import TextStream
from engine.tokenizer import Tokenizer
from parallel.checkpoint.source import resolve_checkpoint
from parallel.ops.choice import OpChoice
from parallel.sampling.params import SamplingParams

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130
DEFAULT_MAX_TOKENS = 256


class Figures(NamedTuple):
    """What one answer took."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_tokens: int
    ttft_s: float
    """From submission to the first token."""
    decode_s: float
    """From the first token to the last."""

    def describe(self) -> str:
        """Return one line."""
        rate = f"{(self.num_tokens - 1) / self.decode_s:.1f} tokens/s" if self.num_tokens > 1 else "one token"
        return (
            f"[prompt {self.num_prompt_tokens} tokens ({self.num_cached_tokens} cached), output {self.num_tokens} "
            f"tokens, TTFT {1e3 * self.ttft_s:.0f} ms, {rate}]"
        )


class ProgressLine:
    """Shows every rank's phase and percentage on one line; one line per phase where there is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._latest: dict[int, Progress] = {}
        self._width = 0

    def show(self, progress: Progress) -> None:
        """Take one rank's progress in."""
        previous = self._latest.get(progress.rank)
        self._latest[progress.rank] = progress
        if self._stream.isatty():
            text = " | ".join(_describe(self._latest[rank]) for rank in sorted(self._latest))
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif previous is None or previous.phase != progress.phase:
            self._stream.write(_describe(progress) + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """Leave the terminal's line empty."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(argv)
    try:
        _generate(options)
    except (StartupError, RequestError) as error:
        return _complain(error, EXIT_WRONG_INPUT)
    except EaglerayError as error:
        return _complain(error, EXIT_FAILED)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has seen enough; it must not be told again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _generate(options: argparse.Namespace) -> None:
    # Everything that can be wrong with the input is found before the ranks start.
    config, sampling = _engine_config(options), _sampling(options)
    tokenizer = Tokenizer.load(resolve_checkpoint(config.model.source, config.model.revision))
    prompts = [_tokenize(tokenizer, text, options.chat) for text in options.prompts]
    with _running_engine(config) as engine:
        if options.explain:
            sys.stderr.write("".join(_explain(choice) + "\n" for choice in engine.ops))
        for number, token_ids in enumerate(prompts):
            if options.max_tokens is None:
                room = max(1, engine.max_model_len - len(token_ids))
                sampling = msgspec.structs.replace(sampling, max_tokens=min(DEFAULT_MAX_TOKENS, room))
            request = GenerationRequest(
                request_id=f"prompt-{number}",
                token_ids=token_ids,
                num_prompt_tokens=len(token_ids),
                sampling=sampling,
            )
            figures = _stream(engine, request, tokenizer)
            sys.stderr.write(figures.describe() + "\n")


@contextmanager
def _running_engine(config: EngineConfig) -> Iterator[Engine]:
    """Yield an engine whose loop runs in a thread; its ranks are gone afterwards."""
    line = ProgressLine(sys.stderr)
    ranks = SocketRankPool(
        LocalLauncher(), config.parallel.tensor_parallel_size, generation=0, options=_pool_options(config.parallel)
    )
    try:
        try:
            engine = start_engine(config, ranks, line.show)
        finally:
            line.clear()
        # A daemon, so that a step that hangs cannot keep the process alive.
        loop = threading.Thread(target=engine.run, name="engine", daemon=True)
        loop.start()
        yield engine
        engine.close(ReplicaFailed("the command is done"))
        loop.join()
    finally:
        ranks.close()


def _stream(engine: Engine, request: GenerationRequest, tokenizer: Tokenizer) -> Figures:
    """Write the answer to standard output as it comes. Raises what the request ended with."""
    events: queue.SimpleQueue[StepEvents] = queue.SimpleQueue()
    text = TextStream(tokenizer, request.token_ids)
    started = time.perf_counter()
    engine.submit(request, events.put)
    arrivals: list[float] = []
    num_cached_tokens = 0
    is_over = False
    while not is_over:
        for event in events.get():
            if event.error is not None:
                raise event.error.to_error()
            arrivals += [time.perf_counter()] * len(event.token_ids)
            num_cached_tokens += event.num_cached_tokens
            sys.stdout.write(text.push(event.token_ids).text)
            is_over = event.is_terminal
        sys.stdout.flush()
    sys.stdout.write(text.finish() + "\n")
    sys.stdout.flush()
    first, last = (arrivals[0], arrivals[-1]) if arrivals else (started, started)
    return Figures(len(request.token_ids), num_cached_tokens, len(arrivals), first - started, last - first)


def _tokenize(tokenizer: Tokenizer, text: str, is_chat: bool | None) -> list[int]:
    if tokenizer.has_chat_template if is_chat is None else is_chat:
        return tokenizer.chat([{"role": "user", "content": text}])
    return tokenizer.encode(text)


def _engine_config(options: argparse.Namespace) -> EngineConfig:
    return EngineConfig.parse(
        {
            "model": {
                "source": options.model,
                "revision": options.revision,
                "dtype": options.dtype,
                "quantization": options.quantization,
            },
            "cache": {"dtype": options.kv_dtype},
            "parallel": {"tensor_parallel_size": options.tensor_parallel_size, "device": options.device},
            # One request at a time, so KV blocks for one context are enough.
            "scheduler": {"max_running": 1},
        },
        "command line",
    )


def _sampling(options: argparse.Namespace) -> SamplingParams:
    seed = random.getrandbits(63) if options.seed is None else options.seed
    if not 0 <= seed < 2**63:
        raise InvalidRequest(f"seed={seed} is out of range; use 0 to 2**63 - 1", param="seed")
    return SamplingParams(
        max_tokens=options.max_tokens or DEFAULT_MAX_TOKENS, seed=seed, temperature=options.temperature
    )


def _pool_options(parallel: ParallelConfig) -> PoolOptions:
    return PoolOptions(
        device=_device(parallel.device),
        num_threads=parallel.threads_per_rank or max(1, usable_cores() // parallel.tensor_parallel_size),
        collective_timeout_s=parallel.collective_timeout_s,
    )


def _device(asked: Literal["auto", "cpu", "cuda"]) -> str:
    # No torch in this process to ask; the driver's control device is there exactly where a GPU can be used.
    if asked == "auto":
        return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    return asked


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine.generate", description="Load a model and stream what it says."
    )
    add = parser.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help="answered one after another")
    add("--model", required=True, help="folder, .gguf file, hub id, or package:NAME")
    add("--revision", help="hub branch, tag or commit")
    add("--tensor-parallel-size", type=_count, default=1, metavar="N", help="ranks the model is split over (1)")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    add("--quantization", choices=["auto", "none", "int8", "fp8"], default="auto", help="of weights (the file's own)")
    add("--kv-dtype", choices=["auto", "bfloat16", "int8"], default="auto", help="of cached keys and values (--dtype)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--max-tokens", type=_count, metavar="N", help=f"most tokens of an answer ({DEFAULT_MAX_TOKENS})")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 takes the most likely token (0)")
    add("--explain", action="store_true", help="say which kernels compute, and why not faster ones")
    add("--seed", type=int, help="of the random numbers; drawn if left out")
    style = parser.add_mutually_exclusive_group()
    style.add_argument(
        "--chat", action="store_true", default=None, help="use the chat template (default where the model has one)"
    )
    style.add_argument("--raw", action="store_false", dest="chat", help="continue the prompt as it is")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _describe(progress: Progress) -> str:
    return f"rank {progress.rank} {progress.phase} {progress.percent}%"


def _explain(choice: OpChoice) -> str:
    reason = f" ({choice.reason})" if choice.reason else ""
    return f"{choice.op:<12} {choice.tier:<6} {choice.detail}{reason}"


def _complain(error: EaglerayError, exit_code: int) -> int:
    sys.stderr.write(f"error: {error.message}\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
