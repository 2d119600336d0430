"""CPU microseconds of the engine thread per step in steady decode, by part, against one Python object per token.

    python -m benchmarks.host_path                        # 1, 32 and 256 running requests, a step every 5 ms
    python -m benchmarks.host_path --rows 256 --save

The engine, the rank channel and the token channel are the real ones. A process plays the rank: it sleeps for the step
and answers with a token for each row. Another plays the gateway: it submits the requests and reads their streams. One
request in sixteen crosses into a new KV block at each step, as in traffic. Only what the engine's thread spends on a
processor counts: no waiting, and not the event loop of the token channel. The other side does the same work the plain
way (a request is an object, so is a token), between two such processes at the ends of pipes.

A thread that wakes every few milliseconds finds its caches cold, more so on a busy machine: what a step costs then is
several times what it costs in a loop (`--step-ms 0`). Compare figures of one run only.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from benchmarks.per_object import PARTS, PerObjectLeader, play_plain_gateway, play_plain_rank
from benchmarks.report import shown, write_report
from cluster.status import ChannelAddress, GroupStatus
from core.errors import ReplicaFailed
from core.progress import Progress
from deployments.groups.transport import TokenStream
from deployments.token_channel.client import TcpTransport
from deployments.token_channel.server import TokenChannelServer
from engine.config import EngineConfig
from engine.engine import Engine
from engine.prefix_feed import PrefixFeed
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.socket_pool import SocketRankPool
from engine.request import EngineLoad, EventSink, GenerationRequest, Placement
from engine.stats import EngineStats
from parallel.models.spec import ModelSpec, RopeSpec
from parallel.plan import SampledTokens, StepResult, pack_integers, unpack_integers
from parallel.rank.channel import connect_to_leader
from parallel.rank.messages import Arrived, Enlist, Joined, Plan, RankProgress, RankSpec, Result
from parallel.rank.pulse import open_pulse
from parallel.sampling.params import SamplingParams

BLOCK_SIZE = 16
PROMPT_TOKENS = 128
EOS = 2
TARGET_US = 100.0
"""Engine thread per step at 256 running requests."""
WINDOWS = 10
"""Stretches of equal length; a figure is their median, and the least of them beside it."""

_SPAWN = multiprocessing.get_context("spawn")


class PlayedRank:
    """A RankLauncher of one process that sleeps instead of computing. Every chunk must reach its prompt's end."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._process: BaseProcess | None = None

    def launch(self, specs: Sequence[RankSpec]) -> None:
        """Start it."""
        self._process = _SPAWN.Process(target=play_rank, args=(specs[0], self._step_s), daemon=True)
        self._process.start()

    def end(self, seat: int, pid: int | None = None) -> None:
        """Kill and wait."""
        self.stop()

    def stop(self) -> None:
        """Kill and wait."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def describe_exit(self, seat: int) -> str | None:
        """Return the exit code, None while it runs."""
        code = None if self._process is None else self._process.exitcode
        return None if code is None else f"exit code {code}"


def play_rank(spec: RankSpec, step_s: float) -> None:
    """Answer every plan with a token for each of its rows."""
    channel, host = connect_to_leader(spec.leader_host, spec.leader_port, spec.secret)
    channel.send(Arrived(spec.seat, os.getpid()))
    pulse = open_pulse(spec)
    order = channel.receive()
    assert isinstance(order, Enlist)
    channel.send(Joined(order.rank, order.generation, os.getpid(), host, "node", "cpu", 1, 1))
    channel.send(RankProgress(Progress(order.rank, "connect", 1, 1)))
    sampled = SampledTokens()
    while isinstance(message := channel.receive(), Plan):
        plan = message.plan
        if plan.chunks is not None:
            rows = plan.decodes + pack_integers([chunk.row for chunk in plan.chunks])
            sampled = SampledTokens(rows, pack_integers([5] * len(unpack_integers(rows))))
        time.sleep(step_s)
        channel.send(Result(StepResult(plan.step, sampled, step_s)))
    pulse.stop()
    channel.finish(1.0)


def play_gateway(address: tuple[str, int, bytes], num_rows: int) -> None:
    """Open `num_rows` streams that never end, and read them."""

    async def read(stream: TokenStream) -> None:
        async for _ in stream:
            pass

    async def main() -> None:
        transport = await TcpTransport.connect(ChannelAddress(*address), "bench")
        requests = [
            GenerationRequest(
                request_id=f"chatcmpl-{secrets.token_hex(16)}-0",
                token_ids=[1 + (row + index) % 1000 for index in range(length)],
                num_prompt_tokens=length,
                sampling=SamplingParams(max_tokens=100_000, seed=1),
            )
            for row, length in enumerate(prompt_lengths(num_rows))
        ]
        streams = [await transport.submit(request) for request in requests]
        await asyncio.gather(*map(read, streams))

    asyncio.run(main())


def prompt_lengths(num_rows: int) -> list[int]:
    """Return lengths that put every row at another place in its block."""
    return [PROMPT_TOKENS - row % BLOCK_SIZE for row in range(num_rows)]


class EngineTarget:
    """A SubmitTarget that is nothing but its engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(self, request: GenerationRequest, sink: EventSink) -> Placement:
        """Pass it on."""
        return self._engine.submit(request, sink)

    def cancel(self, request_id: str) -> None:
        """Pass it on."""
        self._engine.cancel(request_id)

    def load(self) -> EngineLoad:
        """Return the engine's."""
        return self._engine.load()

    def status(self) -> GroupStatus:
        """Return a ready group."""
        return GroupStatus(
            group_id="bench", model="bench", application="bench", state="ready", generation=1, world_size=1
        )


def make_engine(num_rows: int, ranks: SocketRankPool, max_steps_under_way: int) -> Engine:
    """Return an engine for that many requests, whose stats count processor time of its thread."""
    config = EngineConfig.parse(
        {
            "model": {"source": "none", "max_model_len": 2**17},
            "cache": {"block_size": BLOCK_SIZE},
            "scheduler": {
                "max_running": num_rows,
                "max_step_tokens": max(2048, num_rows * PROMPT_TOKENS),
                "max_steps_under_way": max_steps_under_way,
            },
        },
        "benchmark",
    )
    spec = ModelSpec(
        architecture="LlamaForCausalLM",
        hidden_size=64,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=64,
        intermediate_size=64,
        vocab_size=49152,
        max_position_embeddings=2**17,
        rms_norm_eps=1e-5,
        rope=RopeSpec(),
        tie_word_embeddings=True,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_window=None,
        dtype="bfloat16",
        bos_token_id=None,
        eos_token_ids=(EOS,),
    )
    num_blocks = num_rows * 2**17 // BLOCK_SIZE
    return Engine(config, spec, ranks, num_blocks, prefix_feed=PrefixFeed(BLOCK_SIZE), timer=time.thread_time)


async def measure_engine(num_rows: int, options: argparse.Namespace) -> list[dict[str, float]]:
    """Run the engine between a played rank and a played gateway; return each window's microseconds a step by part."""
    ranks = SocketRankPool(PlayedRank(options.step_ms / 1e3), 1, 0, PoolOptions())
    ranks.join(lambda progress: None)
    engine = make_engine(num_rows, ranks, options.steps_under_way)
    thread = threading.Thread(target=engine.run)
    thread.start()
    server = TokenChannelServer(EngineTarget(engine), secrets.token_bytes(32), prefix_feed=lambda: engine.prefix_feed)
    address = await server.start()
    gateway = _SPAWN.Process(
        target=play_gateway, args=((address.host, address.port, address.secret), num_rows), daemon=True
    )
    gateway.start()
    try:
        while engine.load().num_running < num_rows:
            await asyncio.sleep(0.01)
        await _until(engine, engine.stats.num_steps + options.steps // 4)
        snapshots = [replace(engine.stats)]
        for _ in range(WINDOWS):
            await _until(engine, snapshots[-1].num_steps + options.steps // WINDOWS)
            snapshots.append(replace(engine.stats))
        return [engine_window(before, after) for before, after in zip(snapshots, snapshots[1:], strict=False)]
    finally:
        gateway.kill()
        gateway.join()
        engine.close(ReplicaFailed("the benchmark is done"))
        await server.close()
        thread.join()
        ranks.close()


async def _until(engine: Engine, num_steps: int) -> None:
    while engine.stats.num_steps < num_steps:
        await asyncio.sleep(0.01)


def engine_window(before: EngineStats, after: EngineStats) -> dict[str, float]:
    """Return microseconds a step by part between two readings of the stats."""
    num_steps = after.num_steps - before.num_steps
    return {name: 1e6 * (part_s - before.parts_s()[name]) / num_steps for name, part_s in after.parts_s().items()}


def measure_per_object(num_rows: int, options: argparse.Namespace) -> list[dict[str, float]]:
    """Return each window's microseconds a step by part of the plain way."""
    rank, rank_end = _SPAWN.Pipe()
    gateway, gateway_end = _SPAWN.Pipe()
    processes = [
        _SPAWN.Process(target=play_plain_rank, args=(rank_end, num_rows, options.step_ms / 1e3), daemon=True),
        _SPAWN.Process(target=play_plain_gateway, args=(gateway_end,), daemon=True),
    ]
    for process in processes:
        process.start()
    leader = PerObjectLeader(prompt_lengths(num_rows), BLOCK_SIZE, rank, gateway)
    try:
        for _ in range(options.steps // 4):
            leader.step()
        windows: list[dict[str, float]] = []
        for _ in range(WINDOWS):
            costs = np.array([leader.step() for _ in range(options.steps // WINDOWS)])
            windows.append(dict(zip(PARTS, (1e6 * costs.mean(axis=0)).tolist(), strict=True)))
        return windows
    finally:
        for process in processes:
            process.kill()
            process.join()


def figures(windows: list[dict[str, float]]) -> dict[str, Any]:
    """Return the median of each part and of the whole, and the least whole of all windows."""
    totals = [sum(window.values()) for window in windows]
    parts = {name: round(statistics.median(window[name] for window in windows), 1) for name in windows[0]}
    return {
        "us_per_step": round(statistics.median(totals), 1),
        "least_us_per_step": round(min(totals), 1),
        "parts_us": parts,
    }


def main() -> None:
    """Measure, and write the figures as text, JSON or a results file."""
    options = parse_options()
    started_at = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    for num_rows in options.rows:
        ours = figures(asyncio.run(measure_engine(num_rows, options)))
        plain = figures(measure_per_object(num_rows, options))
        ratio = round(plain["us_per_step"] / ours["us_per_step"], 2)
        rows.append({"rows": num_rows, "engine": ours, "object per token": plain, "ratio": ratio})
        if not options.json:
            sys.stdout.write(describe(rows[-1]))
    report = {"step_ms": options.step_ms, "steps": options.steps, "target_us_at_256": TARGET_US, "batches": rows}
    if options.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if options.save:
        sys.stdout.write(f"wrote {shown(write_report('host-path', started_at, report))}\n")


def describe(row: dict[str, Any]) -> str:
    """Return a batch size's figures as lines."""
    lines = [f"{row['rows']} running:\n"]
    for name in ("engine", "object per token"):
        parts = ", ".join(f"{part} {value}" for part, value in row[name]["parts_us"].items())
        lines.append(
            f"  {name}: {row[name]['us_per_step']} us a step (least {row[name]['least_us_per_step']}): {parts}\n"
        )
    return "".join(lines)


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--step-ms", type=float, default=5.0, help="what the rank takes for a step")
    parser.add_argument("--steps-under-way", type=int, choices=[1, 2], default=1)
    parser.add_argument("--json", action="store_true", help="write the figures to standard output as JSON")
    parser.add_argument("--save", action="store_true", help="write a results file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
