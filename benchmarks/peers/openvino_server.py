"""The smallest OpenAI `/v1/completions` over OpenVINO GenAI's continuous batching; runs in OpenVINO's environment.

    python openvino_server.py MODEL_FOLDER --port 18130 --threads 2

OpenVINO's own server is a separate binary, which no package index carries, so the comparison brings this one.
"""

import argparse
import asyncio
import itertools
import json
from pathlib import Path

import numpy as np
import openvino  # pyright: ignore[reportMissingImports]
import openvino_genai  # pyright: ignore[reportMissingImports]
from aiohttp import web
from tokenizers import Tokenizer

MAX_RUNNING = 64
MAX_STEP_TOKENS = 512
_CONTEXT_TOKENS = 16
"""Decoded again with each new token, so that its text has the right blanks."""


class Pipeline:
    """OpenVINO's pipeline, stepped while there is anything to do. Lives on one event loop."""

    def __init__(self, folder: Path, num_threads: int, kv_gib: int) -> None:
        schedule = openvino_genai.SchedulerConfig()
        schedule.cache_size = kv_gib
        schedule.max_num_seqs = MAX_RUNNING
        schedule.max_num_batched_tokens = MAX_STEP_TOKENS
        schedule.dynamic_split_fuse = True
        schedule.enable_prefix_caching = True
        options = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "bf16"}
        self._pipe = openvino_genai.ContinuousBatchingPipeline(str(folder), schedule, "CPU", options)
        self._ids = itertools.count()
        self._open: dict[int, tuple[object, asyncio.Queue[list[int] | None]]] = {}
        self._has_work = asyncio.Event()

    def submit(self, ids: list[int], config: object) -> asyncio.Queue[list[int] | None]:
        """Return where the request's tokens will come, then None."""
        queue: asyncio.Queue[list[int] | None] = asyncio.Queue()
        key = next(self._ids)
        handle = self._pipe.add_request(key, openvino.Tensor(np.array([ids], dtype=np.int64)), config)
        self._open[key] = (handle, queue)
        self._has_work.set()
        return queue

    async def run(self) -> None:
        """Step for ever."""
        while True:
            await self._has_work.wait()
            await asyncio.to_thread(self._pipe.step)
            for key, (handle, queue) in list(self._open.items()):
                self._hand_out(key, handle, queue)
            if not self._open:
                self._has_work.clear()

    def _hand_out(self, key: int, handle: object, queue: asyncio.Queue[list[int] | None]) -> None:
        tokens: list[int] = []
        while handle.can_read():  # pyright: ignore[reportAttributeAccessIssue]
            for output in handle.read().values():  # pyright: ignore[reportAttributeAccessIssue]
                tokens += output.generated_ids
        if tokens:
            queue.put_nowait(tokens)
        status = handle.get_status()  # pyright: ignore[reportAttributeAccessIssue]
        if status != openvino_genai.GenerationStatus.RUNNING:
            queue.put_nowait(None)
            del self._open[key]


class Completions:
    """The one endpoint: greedy, streaming or whole."""

    def __init__(self, pipeline: Pipeline, tokenizer: Tokenizer) -> None:
        self._pipeline = pipeline
        self._tokenizer = tokenizer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = await request.json()
        ids = self._tokenizer.encode(body["prompt"], add_special_tokens=False).ids
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = body.get("max_tokens", 16)
        config.do_sample = False
        config.ignore_eos = body.get("ignore_eos", False)
        queue = self._pipeline.submit(ids, config)
        if body.get("stream"):
            return await self._stream(request, queue, len(ids))
        seen: list[int] = []
        while (tokens := await queue.get()) is not None:
            seen += tokens
        choice = {"text": self._tokenizer.decode(seen), "finish_reason": "length"}
        return web.json_response({"choices": [choice], "usage": _usage(len(ids), len(seen))})

    async def _stream(
        self, request: web.Request, queue: asyncio.Queue[list[int] | None], num_prompt: int
    ) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await reply.prepare(request)
        seen: list[int] = []
        while (tokens := await queue.get()) is not None:
            for token in tokens:
                seen.append(token)
                # A token that adds no text yet (half a character) still counts as an event.
                await reply.write(_event({"choices": [{"text": self._new_text(seen) or " ", "finish_reason": None}]}))
        await reply.write(_event({"choices": [{"text": "", "finish_reason": "length"}]}))
        await reply.write(_event({"choices": [], "usage": _usage(num_prompt, len(seen))}) + b"data: [DONE]\n\n")
        return reply

    def _new_text(self, seen: list[int]) -> str:
        before, now = seen[-_CONTEXT_TOKENS:-1], seen[-_CONTEXT_TOKENS:]
        return self._tokenizer.decode(now)[len(self._tokenizer.decode(before)) :]


def _event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _usage(num_prompt: int, num_output: int) -> dict[str, int]:
    return {"prompt_tokens": num_prompt, "completion_tokens": num_output}


async def application(options: argparse.Namespace) -> web.Application:
    """Return the application; loads the model."""
    pipeline = Pipeline(options.model, options.threads, options.kv_gib)
    completions = Completions(pipeline, Tokenizer.from_file(str(options.model / "tokenizer.json")))
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/completions", completions.handle)

    async def start(app: web.Application) -> None:
        app["stepping"] = asyncio.create_task(pipeline.run())

    app.on_startup.append(start)
    return app


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--kv-gib", type=int, default=1)
    options = parser.parse_args()
    web.run_app(application(options), host="127.0.0.1", port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
