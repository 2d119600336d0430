"""Which library is loaded, and that ctypes and eagle.h agree."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from parallel.cpu import abi, library
from parallel.cpu.build import LEVELS, SOURCES, CompileFailed, Level, library_name
from parallel.cpu.library import KernelLibrary, KernelsUnavailable, cpu_flags, runnable_levels
from tests.support.kernel_libraries import LEVELS as RUNNABLE
from tests.support.kernel_libraries import kernel_library

HEADER = (SOURCES / "eagle.h").read_text()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "PREBUILT", tmp_path / "lib")
    return tmp_path / "eagleray" / "kernels"


def copies_of_the_real_one(level: Level, folder: Path) -> Path:
    return Path(shutil.copy(kernel_library(RUNNABLE[0]).path, folder / library_name(level)))


def refuses(level: Level, folder: Path) -> Path:
    raise CompileFailed(f"{level.name} is beyond this compiler")


@pytest.mark.parametrize("level", RUNNABLE)
def test_library_is_of_the_level_that_was_asked_for(level: str):
    assert kernel_library(level).calls.eg_level() == level.encode()


def test_best_level_of_the_cpu_is_taken_and_compiled_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "compile_library", copies_of_the_real_one)
    first = KernelLibrary.load()
    monkeypatch.setattr(library, "compile_library", refuses)
    second = KernelLibrary.load()
    assert first.level == second.level == RUNNABLE[0]
    assert first.path == second.path and first.path.parent == own_cache


def test_library_of_the_wheel_comes_before_a_compilation(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    library.PREBUILT.mkdir()
    copies_of_the_real_one(runnable_levels()[0], library.PREBUILT)
    monkeypatch.setattr(library, "compile_library", refuses)
    assert KernelLibrary.load().path.parent == library.PREBUILT


def test_level_that_the_compiler_cannot_make_is_skipped(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    worse = LEVELS[-1]
    monkeypatch.setattr(library, "runnable_levels", lambda: [LEVELS[0], worse])
    monkeypatch.setattr(
        library,
        "compile_library",
        lambda level, folder: copies_of_the_real_one(level, folder) if level == worse else refuses(level, folder),
    )
    assert KernelLibrary.load().level == worse.name


def test_first_reason_is_told_when_no_level_can_be_had(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "compile_library", refuses)
    with pytest.raises(KernelsUnavailable, match=f"{RUNNABLE[0]} is beyond this compiler"):
        KernelLibrary.load()


def test_level_that_the_cpu_does_not_run_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "runnable_levels", lambda: [LEVELS[-1]])
    with pytest.raises(KernelsUnavailable, match="'amx' does not run on this CPU; use one of portable"):
        KernelLibrary.load("amx")


def test_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(KernelsUnavailable, match="file/eagleray/kernels: kernels cannot be compiled there"):
        KernelLibrary.load()


def test_library_of_another_header_is_refused(tmp_path: Path):
    source = tmp_path / "other.c"
    source.write_text("int eg_abi_version(void) { return 999; }\n")
    with pytest.raises(KernelsUnavailable, match="ABI version 999"):
        KernelLibrary(compiled(source), LEVELS[-1])


def test_file_that_is_no_library_is_refused(tmp_path: Path):
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    with pytest.raises(KernelsUnavailable, match="cannot be loaded"):
        KernelLibrary(broken, LEVELS[-1])


def test_flag_counts_when_every_processor_has_it():
    info = "processor : 0\nflags\t\t: fpu avx2 amx_tile\n\nprocessor : 1\nflags\t\t: fpu avx2\n"
    assert cpu_flags(info) == {"fpu", "avx2"}
    assert cpu_flags("") == frozenset()


def test_machine_that_says_nothing_runs_portable_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "_CPU_INFO", tmp_path / "nothing")
    assert [level.name for level in runnable_levels()] == ["portable"]


# ---- eagle.h and abi.py ----


def test_abi_version_is_that_of_the_header():
    assert re.search(r"#define EG_ABI_VERSION (\d+)", HEADER)[1] == str(abi.ABI_VERSION)
    assert re.search(r"#define EG_PANEL (\d+)", HEADER)[1] == str(abi.PANEL)


def structs_of_the_header() -> dict[str, type[ctypes.Structure]]:
    names = re.findall(r"^} eg_(\w+);", HEADER, flags=re.MULTILINE)
    special = {"kv": "KV"}
    return {f"eg_{name}": getattr(abi, special.get(name, name.title())) for name in names}


def test_structs_have_the_sizes_and_places_that_c_gives_them(tmp_path: Path):
    structs = structs_of_the_header()
    assert len(structs) >= 7
    expected = [
        number
        for struct in structs.values()
        for number in (ctypes.sizeof(struct), *(getattr(struct, name).offset for name, *_ in struct._fields_))
    ]
    terms = [
        term
        for name, struct in structs.items()
        for term in (f"sizeof({name})", *(f"offsetof({name}, {field})" for field, *_ in struct._fields_))
    ]
    source = tmp_path / "layout.c"
    source.write_text(f'#include "eagle.h"\nconst size_t numbers[] = {{{", ".join(terms)}}};\n')
    numbers = (ctypes.c_size_t * len(terms)).in_dll(ctypes.CDLL(str(compiled(source))), "numbers")
    assert list(numbers) == expected


def test_every_call_of_the_header_is_declared_with_as_many_arguments():
    text = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
    calls = dict(re.findall(r"^[\w ]+?[ *](eg_\w+)\(([^;]*)\);", text, flags=re.MULTILINE))
    counts = {name: 0 if arguments == "void" else arguments.count(",") + 1 for name, arguments in calls.items()}
    # Kernels call the rest of threads.h; Python sets this limit.
    declared = {name: len(arguments) for name, (_, arguments) in abi.FUNCTIONS.items() if name != "eg_threads_limit"}
    assert counts == declared


def compiled(source: Path) -> Path:
    target = source.with_suffix(".so")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{SOURCES}", str(source), "-o", str(target)], check=True)
    return target
