"""Kills and freezes ranks of a single group, again and again: how soon it is seen, and how soon the group serves again.

    python -m benchmarks.recovery                              # one and two ranks, with and without a spare
    python -m benchmarks.recovery --ranks 2 --spares 0 --trials 20 --save

The leader runs in this process, its ranks are Ray actors as they are behind Serve; there is no other group to help,
and no HTTP in the figures. `seen`: until the group says that it restarts. `serving`: until a token of a new request.
Half of the trials hit a group that computes eight requests, half an idle one. Victims take turns.
"""

import argparse
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psutil
import ray

from benchmarks.report import ROOT, shown, summary, write_report
from benchmarks.serve_process import role_of
from cluster.config import ReplicaGroupConfig
from cluster.preflight import check_model
from cluster.ray_launcher import RayRanks
from cluster.replica_group import GroupIdentity, ReplicaGroup
from core.config import read_yaml
from core.errors import EaglerayError
from engine.engine import start_engine
from engine.request import GenerationRequest, StepEvents
from parallel.sampling.params import SamplingParams

CONFIG = ROOT / "configs" / "tp2-two-replicas.yaml"
NUM_REQUESTS = 8
PROMPT = list(range(100, 164))
TIMEOUT_S = 120.0
SETTLE_S = 1.0
"""Between two trials: what follows a recovery, the start of another spare among it, is not to disturb the next."""
SPARE_S = 8.0
HARMS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


class Trial(NamedTuple):
    """Seconds from the harm."""

    seen_s: float
    serving_s: float


class Group:
    """A leader in this process, and when its state changed."""

    def __init__(self, num_ranks: int, num_spares: int, incidents: str) -> None:
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._left_ready_s = 0.0
        config = group_config(num_ranks, num_spares, incidents)
        ranks = RayRanks(config, "benchmark")
        self._group = ReplicaGroup(
            config, GroupIdentity("benchmark", "benchmark"), check_model, ranks, start_engine, on_change=self._note
        )

    def start(self) -> None:
        """Return when it serves."""
        self._group.start()
        self.await_state("ready")

    def await_state(self, state: str) -> float:
        """Return the time at which the group was in `state`; blocks."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._group.status().state == state, TIMEOUT_S):
                raise SystemExit(f"the group was not {state} within {TIMEOUT_S:g} s: {self._group.status().error}")
            return time.monotonic()

    def left_ready_s(self, since_s: float) -> float:
        """Return when the group ceased to be ready after `since_s`; blocks."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._left_ready_s > since_s, TIMEOUT_S):
                raise SystemExit(f"nothing was seen within {TIMEOUT_S:g} s")
            return self._left_ready_s

    def begin(self, max_tokens: int) -> threading.Event:
        """Submit a request; return what is set at its first token. Raises EaglerayError."""
        has_begun = threading.Event()

        def sink(events: StepEvents) -> None:
            if any(event.token_ids for event in events):
                has_begun.set()

        sampling = SamplingParams(max_tokens=max_tokens, seed=1, temperature=0.0, ignore_eos=True)
        name = f"r{next(self._numbers)}"
        request = GenerationRequest(request_id=name, token_ids=PROMPT, num_prompt_tokens=len(PROMPT), sampling=sampling)
        self._group.submit(request, sink)
        return has_begun

    def await_token(self) -> float:
        """Return the time of a new request's first token, asking until there is one."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            try:
                if self.begin(max_tokens=1).wait(TIMEOUT_S):
                    return time.monotonic()
            except EaglerayError:
                time.sleep(0.002)
        raise SystemExit(f"the group did not serve again within {TIMEOUT_S:g} s")

    def close(self) -> None:
        """End it and its ranks."""
        self._group.close()

    def _note(self) -> None:
        with self._changed:
            if self._group.status().state == "restarting":
                self._left_ready_s = time.monotonic()
            self._changed.notify_all()


def main() -> None:
    """Measure, print, and write the results file if asked."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    cli.add_argument("--spares", type=int, nargs="+", default=[0, 1], choices=(0, 1))
    cli.add_argument("--harms", nargs="+", default=list(HARMS), choices=HARMS)
    cli.add_argument("--trials", type=int, default=10, help="of each harm (10)")
    cli.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-recovery.json")
    arguments = cli.parse_args()
    started_at = datetime.now(UTC)
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        cases = [
            case
            for num_ranks, num_spares in itertools.product(arguments.ranks, arguments.spares)
            for case in measure_group(num_ranks, num_spares, arguments.harms, arguments.trials)
        ]
    finally:
        ray.shutdown()
    figures = {"workload": {"requests": NUM_REQUESTS, "trials": arguments.trials}, "cases": cases}
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    if arguments.save:
        sys.stdout.write(f"{shown(write_report('recovery', started_at, figures))}\n")


def measure_group(num_ranks: int, num_spares: int, harms: list[str], num_trials: int) -> list[dict[str, Any]]:
    """Return the figures of each harm to one group."""
    with running_group(num_ranks, num_spares) as group:
        cases = []
        for harm in harms:
            trials = []
            for number in range(num_trials):
                time.sleep(SPARE_S if num_spares else SETTLE_S)
                trials.append(try_once(group, num_ranks, HARMS[harm], number))
            cases.append(
                {
                    "harm": harm,
                    "ranks": num_ranks,
                    "warm_spares": num_spares,
                    "seen_s": summary([trial.seen_s for trial in trials]),
                    "serving_again_s": summary([trial.serving_s for trial in trials]),
                    "trials": [[round(seconds, 4) for seconds in trial] for trial in trials],
                }
            )
        return cases


@contextmanager
def running_group(num_ranks: int, num_spares: int) -> Iterator[Group]:
    """Yield a group that serves; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="eagleray-recovery-") as incidents:
        group = Group(num_ranks, num_spares, incidents)
        try:
            group.start()
            yield group
        finally:
            group.close()


def try_once(group: Group, num_ranks: int, harm: signal.Signals, number: int) -> Trial:
    """Harm a rank of a busy group, or every other time of an idle one."""
    if number % 2 == 0:
        for has_begun in [group.begin(max_tokens=1500) for _ in range(NUM_REQUESTS)]:
            has_begun.wait(TIMEOUT_S)
    # A spare is always the youngest.
    ranks = sorted(_ranks(), key=psutil.Process.create_time)[:num_ranks]
    victim = ranks[number // 2 % num_ranks]
    harmed_s = time.monotonic()
    os.kill(victim.pid, harm)
    return Trial(group.left_ready_s(harmed_s) - harmed_s, group.await_token() - harmed_s)


def group_config(num_ranks: int, num_spares: int, incidents: str) -> ReplicaGroupConfig:
    """Return CONFIG's model on so many ranks; its restarts are not counted."""
    (model,) = [each for each in read_yaml(CONFIG)["applications"] if each["import_path"] == "deployments.app:model"]
    args = {key: model["args"][key] for key in ReplicaGroupConfig.model_fields if key in model["args"]}
    args["parallel"] = args["parallel"] | {"tensor_parallel_size": num_ranks}
    args["restart"] = {"stable_after_s": 0, "warm_spares": num_spares, "incident_folder": incidents}
    return ReplicaGroupConfig.parse(args, str(CONFIG))


def _ranks() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if role_of(process) == "rank"]


if __name__ == "__main__":
    main()
