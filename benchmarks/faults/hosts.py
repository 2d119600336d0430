"""A tensor-parallel group over two hosts of a Ray cluster: the link goes down for a moment, for long, a host dies.

    python -m benchmarks.faults.hosts

Four hosts (network namespaces of this machine, see namespaces.py), each a Ray node: one for gateway and leader, three
for ranks, of which `STRICT_SPREAD` takes two. Under open streams a rank's host loses its link for 1 s and for 10 s,
then it loses its power for good, and the group has to move to the hosts that are left. There is no other group: streams
that break are held as long as the gateway is configured to.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.client import Endpoint, RawStream, closed_loop
from benchmarks.faults.answers import Lengths, answers, judged, questions
from benchmarks.faults.fleet import MODEL, Fleet, FleetPlan
from benchmarks.faults.kills import RESUMES
from benchmarks.faults.namespaces import CannotMakeHosts, HostNetwork
from benchmarks.faults.ray_nodes import NodePlan, RayNode, family_ended, ray_head, ray_worker
from benchmarks.report import ROOT, shown, write_report
from benchmarks.serve_process import role_of
from benchmarks.workloads import Planned

NUM_QUESTIONS = 32
NUM_RANK_HOSTS = 3
LENGTHS = Lengths(least_prompt=16, most_prompt=128, least_output=60, most_output=160)
HEAD = 0
PORT = 8000
RECOVERY_TIMEOUT_S = 180.0
STEP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Fault:
    """One fault and what came of it."""

    name: str
    errors: dict[str, int]
    num_unequal: int
    num_resumed: int
    is_restarted: bool
    """Whether the group is another, or another generation, than before."""
    serving_again_s: float
    """From the fault until a stream that was asked for after it has a token, and all is as before."""

    def as_json(self) -> dict[str, Any]:
        """Return the figures for a results file."""
        return vars(self) | {"serving_again_s": round(self.serving_again_s, 2)}


class Cluster:
    """Ray nodes on hosts, and a fleet served by them."""

    def __init__(self, network: HostNetwork, nodes: Sequence[RayNode]) -> None:
        self.network = network
        self._nodes = nodes
        self.fleet = Fleet(f"http://{network.address(HEAD)}:{PORT}", nodes[HEAD].process)

    def rank_host(self) -> int:
        """Return a host that has a rank now. Raises SystemExit if there is none."""
        for host in range(len(self._nodes) - 1, HEAD, -1):
            if any(role_of(process) == "rank" for process in self.network.processes(host)):
                return host
        raise SystemExit("no host has a rank")


@contextlib.contextmanager
def cluster(network: HostNetwork, folder: Path) -> Iterator[Cluster]:
    """Start a Ray node on every host and serve one group of two ranks; nothing is left when the block ends."""

    def node(host: int, resources: dict[str, float]) -> NodePlan:
        return NodePlan(network.address(host), num_cpus=1, resources=resources, prefix=network.command(host, []))

    with contextlib.ExitStack() as nodes:
        head = nodes.enter_context(ray_head(node(HEAD, {"head": 1000}), folder))
        workers = [
            nodes.enter_context(ray_worker(node(host, {}), head, folder)) for host in range(1, NUM_RANK_HOSTS + 1)
        ]
        config = serve_config(network.address(HEAD), folder)
        with (folder / "serve.log").open("wb") as log:
            server = subprocess.Popen(
                network.command(HEAD, [sys.executable, "-m", "deployments.serve_run", str(config)]),
                cwd=ROOT,
                env={**os.environ, **head.environment, "RAY_ADDRESS": head.address},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        with family_ended(server):
            running = Cluster(network, [head, *workers])
            running.fleet.wait_until_ready(1, RECOVERY_TIMEOUT_S, besides=frozenset())
            yield running


def serve_config(address: str, folder: Path) -> Path:
    """Write the Serve config; return its path. A rank takes a whole CPU, of which the head's host has none to spare."""
    plan = FleetPlan(
        num_groups=1,
        world_size=2,
        cpus_per_rank=1.0,
        actor_resources={"head": 1},
        model_args={
            "parallel": {"step_timeout_s": STEP_TIMEOUT_S},
            "placement": {"strategy": "STRICT_SPREAD", "timeout_s": RECOVERY_TIMEOUT_S},
            "channel_host": address,
        },
    )
    settings = plan.settings()
    settings["http_options"] |= {"host": address, "port": PORT}
    gateway = next(app for app in settings["applications"] if app["name"] == "gateway")
    gateway["args"]["allow_anonymous"] = True  # nothing else is on these networks
    path = folder / "hosts.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


class Experiment:
    """Breaks a cluster in several ways under open streams; owns the figures."""

    def __init__(self, running: Cluster, num_streams: int) -> None:
        self._cluster = running
        self._num_streams = num_streams
        self._endpoint = Endpoint(f"{running.fleet.url}/v1", MODEL)
        self._asked = questions(NUM_QUESTIONS, LENGTHS)
        streams = asyncio.run(closed_loop(self._endpoint, self._asked, num_streams, 600))
        self._undisturbed = answers(streams, NUM_QUESTIONS)

    def suffer(self, name: str, harm: Callable[[], None]) -> Fault:
        """Do harm, which blocks until it is over, while streams are open. Raises SystemExit if that was the end."""
        fleet = self._cluster.fleet
        former, num_resumes = frozenset(fleet.ready()), fleet.total(RESUMES)
        streams, serving_again_s = asyncio.run(self._under_streams(harm))
        verdict = judged(answers(streams, NUM_QUESTIONS), self._undisturbed, self._asked)
        return Fault(
            name,
            verdict.errors,
            verdict.num_unequal,
            int(fleet.total(RESUMES) - num_resumes),
            not fleet.ready() <= former,
            serving_again_s,
        )

    async def _under_streams(self, harm: Callable[[], None]) -> tuple[list[RawStream], float]:
        suffering = asyncio.create_task(self._suffer(harm))
        endless = itertools.takewhile(lambda _: not suffering.done(), itertools.cycle(self._asked))
        streams = await closed_loop(self._endpoint, endless, self._num_streams, 2 * RECOVERY_TIMEOUT_S)
        return streams, await suffering

    async def _suffer(self, harm: Callable[[], None]) -> float:
        await asyncio.sleep(2.0)
        harmed_s = time.perf_counter()
        await asyncio.to_thread(harm)
        while time.perf_counter() < harmed_s + RECOVERY_TIMEOUT_S:
            asked: list[Planned] = [self._asked[0]]
            (stream,) = await closed_loop(self._endpoint, asked, 1, 30)
            if answers([stream], 1)[0].outcome.error is None:
                return stream.chunks[0][0] - harmed_s
            await asyncio.sleep(0.2)
        raise SystemExit(f"nothing was served again within {RECOVERY_TIMEOUT_S:g} s")


def faults(running: Cluster, num_streams: int) -> list[Fault]:
    """Return what came of each fault, the worst last."""
    experiment = Experiment(running, num_streams)
    network = running.network

    def cut_for(seconds: float) -> None:
        host = running.rank_host()
        network.cut(host)
        time.sleep(seconds)
        network.mend(host)

    found = [experiment.suffer(f"link down {seconds:g} s", lambda s=seconds: cut_for(s)) for seconds in (1.0, 10.0)]
    return [*found, experiment.suffer("host killed", lambda: network.kill_host(running.rank_host()))]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the results file if asked; return 0 if a second of silence cost nothing and texts stay."""
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.hosts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("--streams", type=int, default=8, help="streams kept open (8)")
    cli.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-faults-hosts.json")
    options = cli.parse_args(arguments)
    started_at = datetime.now(UTC)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="er-", ignore_cleanup_errors=True) as folder,
            HostNetwork(NUM_RANK_HOSTS + 1) as network,
            cluster(network, Path(folder)) as running,
        ):
            found = faults(running, options.streams)
    except CannotMakeHosts as reason:
        raise SystemExit(f"no hosts on this machine: {reason}") from None
    report = {"workload": vars(options), "faults": [fault.as_json() for fault in found]}
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if options.save:
        sys.stdout.write(f"{shown(write_report('faults-hosts', started_at, report))}\n")
    blip = found[0]
    return 1 if blip.errors or blip.is_restarted or any(fault.num_unequal for fault in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
