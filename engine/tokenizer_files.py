"""Where a model's tokenizer.json and chat template are; made once and kept when the model does not carry them.

GGUF files and folders with only a SentencePiece model need transformers for the conversion, which needs torch, which
this process must not load. So a child process converts, and its result is kept under the user's cache folder.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import CheckpointError
from parallel.checkpoint.fields import Fields, read_json_object
from parallel.checkpoint.remote_code import refuse_remote_code

CONVERSION = 1
"""Part of every cache key; raise it when tokenizer_convert.py changes what it writes."""
_CONVERSION_TIMEOUT_S = 300.0
_SOURCES = ("tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json", "vocab.txt")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer is built from."""

    tokenizer_json: Path
    special_tokens: Mapping[str, str]
    """`bos_token` and its kind, by role."""
    templates: Mapping[str, str]
    """Chat templates by name; `default` is the usual one."""
    eos_token_ids: tuple[int, ...]
    """From config.json and generation_config.json; the eos_token comes on top."""


def find_tokenizer_files(path: Path) -> TokenizerFiles:
    """Return the tokenizer of a model folder or .gguf file; may convert it, in seconds. Raises CheckpointError."""
    folder = path if (path / "tokenizer.json").exists() else _converted(path)
    config = _fields_of(folder / "tokenizer_config.json")
    return TokenizerFiles(
        tokenizer_json=folder / "tokenizer.json",
        special_tokens=_special_tokens(config, _fields_of(folder / "special_tokens_map.json")),
        templates=_templates(folder, config),
        eos_token_ids=tuple(
            token_id
            for file in (path / "config.json", path / "generation_config.json", folder / "generation_config.json")
            for token_id in _fields_of(file).integers("eos_token_id")
        ),
    )


def _fields_of(path: Path) -> Fields:
    return Fields(read_json_object(path) if path.exists() else {}, str(path))


def _special_tokens(*holders: Fields) -> dict[str, str]:
    found: dict[str, str] = {}
    for holder in holders:
        for role in _SPECIAL_TOKENS:
            match holder.values.get(role):
                case str(content) | {"content": str(content)}:
                    found.setdefault(role, content)
                case None:
                    pass
                case _:
                    raise holder.wrong(role, "text, or an object with text as content")
    return found


def _templates(folder: Path, config: Fields) -> dict[str, str]:
    """Return templates by name; files win over tokenizer_config.json, as in transformers."""
    templates: dict[str, str] = {}
    match config.values.get("chat_template"):
        case str(source):
            templates["default"] = source
        case list(named):
            for entry in named:
                match entry:
                    case {"name": str(name), "template": str(source)}:
                        templates[name] = source
                    case _:
                        raise config.wrong("chat_template", "text, or a list of objects with name and template")
        case None:
            pass
        case _:
            raise config.wrong("chat_template", "text, or a list of objects with name and template")
    files = {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (folder / "chat_template.jinja").exists():
        files["default"] = folder / "chat_template.jinja"
    return templates | {name: _read_text(path) for name, path in files.items()}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); download it again") from None


def _converted(path: Path) -> Path:
    """Return the cached folder with the converted tokenizer of `path`, converting if it is not there yet."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eagleray" / "tokenizers"
    target = root / _cache_key(path)
    if not (target / "tokenizer.json").exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root, prefix="converting-") as made:
                _convert_in_child(path, Path(made) / "tokenizer")
                _publish(Path(made) / "tokenizer", target)
        except OSError as error:
            raise CheckpointError(f"{root}: cannot be written ({error.strerror}); set XDG_CACHE_HOME") from None
    return target


def _publish(made: Path, target: Path) -> None:
    """Move the finished folder in place at once; if another process was first, its result is the same."""
    try:
        made.rename(target)
    except OSError:
        if not (target / "tokenizer.json").exists():
            raise


def _cache_key(path: Path) -> str:
    files = [path] if path.is_file() else [path / name for name in _SOURCES if (path / name).exists()]
    if not files:
        raise CheckpointError(
            f"{path}: holds no tokenizer.json, tokenizer.model or vocab.json; add the model's tokenizer"
        )
    digest = hashlib.blake2b(str(CONVERSION).encode(), digest_size=16)
    for file in files:
        status = file.resolve().stat()
        digest.update(f"|{file.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _convert_in_child(path: Path, made: Path) -> None:
    """Run tokenizer_convert.py, which makes the folder `made`; blocks."""
    # The child's library would look for code before it looks at anything else.
    for settings in (path / "tokenizer_config.json", path / "config.json"):
        refuse_remote_code(_fields_of(settings))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-m", "engine.tokenizer_convert", str(path.absolute()), str(made)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_CONVERSION_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{path}: converting its tokenizer took over {_CONVERSION_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0 or not (made / "tokenizer.json").exists():
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckpointError(
            f"{path}: its tokenizer cannot be converted ({reason}); put the model's tokenizer.json beside it"
        )
