"""What our own server is configured with in the comparison: one place for the bare engine and for `serve run`."""

from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.peers.home import SOURCE
from benchmarks.report import ROOT
from core.config import read_yaml

Weights = Literal["bf16", "int8", "int4"]
"""What the matrices are held in while serving."""

MAX_MODEL_LEN = 2048
MAX_RUNNING = 64
KV_BYTES = 2**30
"""Room for 46,600 tokens of SmolLM2-135M in bfloat16, at every peer that lets one choose."""

_MODEL: dict[Weights, dict[str, str]] = {
    "bf16": {"quantization": "none", "dtype": "bfloat16"},
    "int8": {"quantization": "int8", "dtype": "bfloat16"},
    # As the file has them: Q4_1 matrices, and the embedding in Q8_0.
    "int4": {"quantization": "auto", "dtype": "bfloat16"},
}


def model_args(weights: Weights, name: str) -> dict[str, Any]:
    """Return `args` of the model application; threads, and all else not named here, are the engine's defaults."""
    return {
        "name": name,
        "model": {"source": SOURCE, "max_model_len": MAX_MODEL_LEN, **_MODEL[weights]},
        "parallel": {"device": "cpu"},
        "cache": {"memory": KV_BYTES},
        "scheduler": {"max_running": MAX_RUNNING},
    }


def write_serve_config(weights: Weights, name: str, port: int, path: Path) -> None:
    """Write quickstart.yaml with our arguments and that port for Serve's proxy to `path`."""
    settings = read_yaml(ROOT / "configs" / "quickstart.yaml")
    settings["http_options"] |= {"host": "127.0.0.1", "port": port}
    gateway, model = settings["applications"]
    gateway["args"]["models"] = [name]
    model["name"] = name
    model["args"] |= model_args(weights, name)
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
