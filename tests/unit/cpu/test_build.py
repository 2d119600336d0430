"""From kernel sources to a library. Sources here are a line long; the real ones are compiled where they are tested."""

import subprocess
from pathlib import Path

import pytest

from parallel.cpu import build
from parallel.cpu.build import LEVELS, CompileFailed, compile_library, library_name

PORTABLE = LEVELS[-1]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "eagle.h").write_text("int eg_abi_version(void);\n")
    (folder / "eagle.c").write_text('#include "eagle.h"\nint eg_abi_version(void) { return 1; }\n')
    monkeypatch.setattr(build, "SOURCES", folder)
    return folder


def test_library_is_the_only_thing_a_compilation_leaves(sources: Path, tmp_path: Path):
    target = tmp_path / "out"
    target.mkdir()
    library = compile_library(PORTABLE, target)
    assert list(target.iterdir()) == [library] and library.name == library_name(PORTABLE)


def test_name_changes_with_every_source_and_level(sources: Path):
    names = {library_name(level) for level in LEVELS}
    before = library_name(PORTABLE)
    (sources / "eagle.h").write_text("int eg_abi_version(void); /* changed */\n")
    changed = library_name(PORTABLE)
    (sources / "more.c").write_text("")
    assert len(names) == len(LEVELS)
    assert len({before, changed, library_name(PORTABLE)}) == 3


def test_name_changes_with_flags(sources: Path, monkeypatch: pytest.MonkeyPatch):
    before = library_name(PORTABLE)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    assert library_name(PORTABLE) != before


def test_refused_source_is_told_and_leaves_nothing(sources: Path, tmp_path: Path):
    (sources / "eagle.c").write_text("#error these kernels are broken\n")
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(CompileFailed, match="portable kernels: .*these kernels are broken"):
        compile_library(PORTABLE, target)
    assert list(target.iterdir()) == []


def test_call_that_nobody_defines_is_found_when_compiling(sources: Path, tmp_path: Path):
    (sources / "eagle.c").write_text("int eg_missing(void);\nint eg_abi_version(void) { return eg_missing(); }\n")
    with pytest.raises(CompileFailed, match="eg_missing"):
        compile_library(PORTABLE, tmp_path)


def test_missing_compiler_is_named(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(CompileFailed, match=r"no C compiler \(no-such-compiler\)"):
        compile_library(PORTABLE, tmp_path)


def test_interrupted_compilation_leaves_no_half_library(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(command: list[str], **_: object) -> None:
        Path(command[command.index("-o") + 1]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(KeyboardInterrupt):
        compile_library(PORTABLE, target)
    assert list(target.iterdir()) == []


def test_better_levels_ask_for_more_of_the_cpu():
    for better, worse in zip(LEVELS, LEVELS[1:], strict=False):
        assert better.cpu_flags > worse.cpu_flags
    assert PORTABLE.cpu_flags == frozenset()
