"""A slice of a public trace through a served fleet, once for each routing policy: TTFT, ITL, goodput, cache hits.

    python -m benchmarks.live_routing --traces /path/to/traces --policies cost,random,power-of-two,ray-prefix

The trace says when requests come, how long they are and which 512-token blocks of their prompts are the same; each
block becomes random token ids that depend on its id alone. Whole conversations are drawn from the trace, lengths
divided by `--divide` and times set to `--rate`, so that a small model on a few cores can follow. Every policy gets a
server of its own, with cold caches, and the same requests at the same times (open loop). The first tenth of the
requests, which meets the cold caches, is left out.

goodput: requests a second whose TTFT is at most 1 s + 3 times what their whole prompt takes alone, and whose TPOT is at
most 0.1 s (`--tpot-target`).
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.client import Endpoint, closed_loop, open_loop
from benchmarks.faults.fleet import MODEL, Fleet, FleetPlan
from benchmarks.metrics import Outcome, gaps, parse
from benchmarks.report import shown, summary, write_report
from benchmarks.routing.traces import BLOCK_TOKENS, READERS, Arrival, Trace
from benchmarks.serve_process import served
from benchmarks.workloads import IdPrompts, Planned

IDS = range(1000, 20_000)
"""Ordinary token ids of the model's vocabulary."""
READY_TIMEOUT_S = 120.0
MAX_IN_FLIGHT = 512
CACHE_BLOCK = 16
"""Tokens of a KV block, which is what a prefix cache keeps."""
GROUP_WORK = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
CACHED = "vllm:prefix_cache_hits_total"


@dataclass(frozen=True)
class Slo:
    """What a caller accepts."""

    prefill_tokens_per_s: float
    """Of one prompt alone on an idle fleet."""
    tpot_s: float
    ttft_s: float = 1.0
    ttft_per_prefill: float = 3.0

    def is_met(self, outcome: Outcome) -> bool:
        """Whether the answer was complete and in time."""
        if outcome.error is not None:
            return False
        alone_s = outcome.num_prompt_tokens / self.prefill_tokens_per_s
        in_time = outcome.ttft_s <= self.ttft_s + self.ttft_per_prefill * alone_s
        return in_time and (outcome.tpot_s or 0.0) <= self.tpot_s


def sampled(trace: Trace, num_requests: int, longest: int, seed: int) -> Trace:
    """Return whole conversations of the trace, about `num_requests` requests of at most `longest` prompt tokens.

    The beginning of a trace shares little yet; conversations drawn from all of it share among themselves what they do.
    """
    conversations: dict[tuple[int, ...], list[Arrival]] = {}
    for number, arrival in enumerate(trace.arrivals):
        if arrival.num_prompt_tokens <= longest:
            # The first block is everybody's system prompt; whoever has no second is alone.
            key = arrival.block_ids[:2] if len(arrival.block_ids) > 1 else (-number,)
            conversations.setdefault(key, []).append(arrival)
    keys = sorted(conversations)
    random.Random(seed).shuffle(keys)
    kept: list[Arrival] = []
    for key in keys:
        kept += conversations[key] if len(kept) < num_requests else []
    return Trace(trace.name, trace.span_s, tuple(sorted(kept, key=lambda arrival: arrival.at_s)))


def scaled(trace: Trace, divide: int, rate_per_s: float) -> list[Planned]:
    """Return the trace's requests with lengths divided, and at that mean rate."""
    timed = trace.at_rate(rate_per_s).arrivals
    return [
        Planned(
            prompt_of(arrival, number, divide),
            max(2, arrival.num_output_tokens // divide),
            arrival.at_s - timed[0].at_s,
        )
        for number, arrival in enumerate(timed)
    ]


def prompt_of(arrival: Arrival, number: int, divide: int) -> list[int]:
    """Return token ids: the blocks', each a matter of its id alone, then a tail of the request's own."""
    num_tokens = max(1, arrival.num_prompt_tokens // divide)
    ids = list(_block_ids(arrival.block_ids, BLOCK_TOKENS // divide))[:num_tokens]
    return ids + random.Random(f"tail {number}").choices(IDS, k=num_tokens - len(ids))


def _block_ids(blocks: Sequence[int], num_tokens: int) -> Iterator[int]:
    for block in blocks:
        yield from random.Random(f"block {block}").choices(IDS, k=num_tokens)


def shared_tokens(planned: Sequence[Planned]) -> int:
    """Return how many prompt tokens a single cache without bounds would have had already, in order of arrival."""
    known: set[int] = set()
    num_shared = 0
    for request in planned:
        key = 0
        for start in range(0, len(request.prompt) - CACHE_BLOCK + 1, CACHE_BLOCK):
            key = hash((key, *request.prompt[start : start + CACHE_BLOCK]))
            num_shared += CACHE_BLOCK if key in known else 0
            known.add(key)
    return num_shared


def figures(outcomes: Sequence[Outcome], slo: Slo, work: Sequence[float]) -> dict[str, Any]:
    """Return the figures of one policy. `work`: tokens each group computed."""
    warm = outcomes[len(outcomes) // 10 :]
    good = [outcome for outcome in warm if outcome.error is None]
    num_met = sum(slo.is_met(outcome) for outcome in warm)
    duration_s = max(one.ended_at for one in warm) - min(one.sent_at for one in warm)
    num_prompt = sum(outcome.num_prompt_tokens for outcome in good)
    return {
        "num_requests": len(warm),
        "num_failed": len(warm) - len(good),
        "ttft_s": summary([outcome.ttft_s for outcome in good]),
        "itl_s": summary(gaps(good)),
        "tpot_s": summary([outcome.tpot_s for outcome in good if outcome.tpot_s is not None]),
        "slo_attainment": round(num_met / len(warm), 4),
        "goodput_requests_per_s": round(num_met / duration_s, 3),
        "hit_rate": round(sum(outcome.num_cached_tokens for outcome in good) / max(1, num_prompt), 4),
        "imbalance": round(max(work) / (sum(work) / len(work)), 3) if any(work) else 1.0,
    }


class Replay:
    """Serves the fleet under one policy after another; owns the figures."""

    def __init__(self, options: argparse.Namespace, planned: Sequence[Planned], folder: Path) -> None:
        self._options = options
        self._planned = planned
        self._folder = folder
        self._prefill_tokens_per_s: float | None = None
        self.rounds: dict[str, list[dict[str, Any]]] = {policy: [] for policy in options.policies}

    def run(self) -> None:
        """Replay the trace under every policy, `rounds` times."""
        for turn in range(self._options.rounds):
            for policy in self._options.policies:
                self.rounds[policy].append(self._replay(policy))
                sys.stderr.write(f"round {turn + 1}, {policy}: {line(self.rounds[policy][-1])}\n")

    @property
    def prefill_tokens_per_s(self) -> float:
        """Speed of one prompt alone, as the first server had it; every policy is judged by the same."""
        assert self._prefill_tokens_per_s is not None, "run first"
        return self._prefill_tokens_per_s

    def _replay(self, policy: str) -> dict[str, Any]:
        options = self._options
        plan = FleetPlan(
            num_groups=options.groups,
            kv_memory=options.kv_memory,
            gateway_args={"routing": {"policy": policy}},
            model_args={"model": {"max_model_len": options.longest + 512}},
        )
        with served(plan.write(self._folder, f"{policy}.yaml"), {}, is_direct=False) as server:
            fleet = Fleet(server.url, server.root)
            fleet.wait_until_ready(options.groups, READY_TIMEOUT_S, besides=frozenset())
            endpoint = Endpoint(f"{server.url}/v1", MODEL)
            alone = prefill_speed(endpoint)
            if self._prefill_tokens_per_s is None:
                self._prefill_tokens_per_s = alone
            before = computed(fleet)
            max_seconds = self._planned[-1].at_s + options.max_drain
            streams = asyncio.run(open_loop(endpoint, self._planned, MAX_IN_FLIGHT, max_seconds))
            after = computed(fleet)
        slo = Slo(self.prefill_tokens_per_s, options.tpot_target)
        work = [count - before.get(group, 0.0) for group, count in after.items()]
        return figures([parse(stream) for stream in streams], slo, work) | {"prefill_alone_tokens_per_s": round(alone)}


def prefill_speed(endpoint: Endpoint) -> float:
    """Return prompt tokens per second of one long prompt alone; the best of three that share nothing."""
    prompts = IdPrompts(seed=99)
    asked = [Planned(prompts.make(1024), 2) for _ in range(4)]
    outcomes = [parse(stream) for stream in asyncio.run(closed_loop(endpoint, asked, 1, 120))]
    return max(outcome.num_prompt_tokens / outcome.ttft_s for outcome in outcomes[1:])


def computed(fleet: Fleet) -> dict[str, float]:
    """Return the tokens each group computed so far, prompt and output, without what its cache had."""
    work: dict[str, float] = {}
    for name, sign in [*((name, 1) for name in GROUP_WORK), (CACHED, -1)]:
        for group, count in fleet.metric(name).items():
            work[group] = work.get(group, 0.0) + sign * count
    return work


def line(result: dict[str, Any]) -> str:
    """Return a policy's figures in one line."""
    ttft, itl = result["ttft_s"], result["itl_s"]
    return (
        f"TTFT mean {ttft['mean']:.2f} p50 {ttft['p50']:.2f} p99 {ttft['p99']:.2f} s, ITL p50 {1000 * itl['p50']:.0f} "
        f"p99 {1000 * itl['p99']:.0f} ms, goodput {result['goodput_requests_per_s']:.2f}/s "
        f"({100 * result['slo_attainment']:.0f} %), hits {100 * result['hit_rate']:.0f} %, "
        f"imbalance {result['imbalance']:.2f}, failed {result['num_failed']}"
    )


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the results file if asked; return 0 if no request failed."""
    options = parse_arguments(arguments)
    started_at = datetime.now(UTC)
    trace = READERS[options.trace](options.traces)
    slice_ = sampled(trace, options.requests, options.longest * options.divide, options.seed)
    planned = scaled(slice_, options.divide, options.rate)
    num_prompt = sum(len(request.prompt) for request in planned)
    with tempfile.TemporaryDirectory(prefix="eagleray-routing-") as folder:
        replay = Replay(options, planned, Path(folder))
        replay.run()
    workload = {
        **{name: value for name, value in vars(options).items() if name not in ("traces", "save")},
        "prompt_tokens": num_prompt,
        "output_tokens": sum(request.num_output for request in planned),
        "shared_share_of_prompt_tokens": round(shared_tokens(planned) / num_prompt, 4),
        "slo_prefill_tokens_per_s": round(replay.prefill_tokens_per_s),
    }
    report = {"workload": workload, "policies": replay.rounds}
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if options.save:
        sys.stdout.write(f"{shown(write_report('live-routing', started_at, report))}\n")
    return 1 if any(result["num_failed"] for rounds in replay.rounds.values() for result in rounds) else 0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.live_routing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("--traces", type=Path, required=True, help="folder of the traces; benchmarks/routing names them")
    cli.add_argument(
        "--trace", choices=[name for name in READERS if "mooncake" in name], default="mooncake_conversation"
    )
    cli.add_argument("--policies", type=lambda text: text.split(","), default="cost,random,power-of-two,ray-prefix")
    cli.add_argument("--groups", type=int, default=4, help="replica groups (4)")
    cli.add_argument("--requests", type=int, default=200, help="about so many, in whole conversations (200)")
    cli.add_argument("--rate", type=float, default=2.0, help="mean requests a second (2)")
    cli.add_argument("--divide", type=int, default=8, help="lengths by this (8)")
    cli.add_argument("--longest", type=int, default=4096, help="prompts longer than this after it are left out (4096)")
    cli.add_argument("--kv-memory", default="256MiB", help="KV cache of a group (256MiB: 11,600 tokens)")
    cli.add_argument("--tpot-target", type=float, default=0.1, help="s (0.1)")
    cli.add_argument("--max-drain", type=float, default=120.0, help="seconds open streams may take in the end (120)")
    cli.add_argument("--rounds", type=int, default=1, help="every policy once a round (1)")
    cli.add_argument("--seed", type=int, default=0, help="of the conversations drawn (0)")
    cli.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-live-routing.json")
    return cli.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
