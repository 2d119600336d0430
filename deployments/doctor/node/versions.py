"""Whether the installed packages are what this one and they themselves ask for, and whether the big ones load."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deployments.doctor.finding import Finding, note, ok, problem
from deployments.doctor.inside import ask_python

PACKAGE = "eagleray"
LEAST_PYTHON = (3, 11)
LOADED = ("torch", "ray", "transformers")
"""What takes long to load and breaks most often; loaded in a process of its own each."""


@dataclass(frozen=True)
class VersionFacts:
    """What is installed."""

    python: tuple[int, int, int]
    installed: Mapping[str, str]
    """Version of every distribution, by canonical name."""
    requires: Mapping[str, tuple[str, ...]]
    """What each of them asks for."""


@dataclass(frozen=True)
class ImportFacts:
    """How the import of one package went."""

    package: str
    version: str | None
    """None: not installed."""
    error: str
    """Empty if it loads."""


def gather_versions() -> VersionFacts:
    """Return what this interpreter finds; reads metadata only."""
    installed: dict[str, str] = {}
    requires: dict[str, tuple[str, ...]] = {}
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.name)
        if name not in installed:  # the first one on the path is the one that is imported
            installed[name] = distribution.version
            requires[name] = tuple(distribution.requires or ())
    return VersionFacts(sys.version_info[:3], installed, requires)


def check_versions(facts: VersionFacts) -> Iterator[Finding]:
    """Yield what does not fit, over everything that this package needs directly or not."""
    shown = ".".join(map(str, facts.python))
    if facts.python[:2] < LEAST_PYTHON:
        yield problem("node.python", f"Python {shown}", "use Python 3.11 or newer")
    else:
        yield ok("node.python", f"Python {shown}")
    if PACKAGE not in facts.installed:
        yield note("node.packages", f"{PACKAGE} is not installed here, so what it needs is unknown", "pip install it")
        return
    misfits = list(_misfits(facts))
    for misfit in misfits:
        yield problem("node.packages", misfit, f"pip install --upgrade {PACKAGE}, or a fresh virtual environment")
    if not misfits:
        known = (f"{name} {facts.installed[name]}" for name in (PACKAGE, *LOADED) if name in facts.installed)
        yield ok("node.packages", f"{', '.join(known)} and all they need fit each other")


def _misfits(facts: VersionFacts) -> Iterator[str]:
    waiting: list[tuple[str, frozenset[str]]] = [(PACKAGE, frozenset())]
    seen = set(waiting)
    said: set[str] = set()
    while waiting:
        name, extras = waiting.pop()
        for requirement in _requirements(facts.requires.get(name, ()), extras):
            needed = canonicalize_name(requirement.name)
            version = facts.installed.get(needed)
            complaint = _complaint(name, requirement, version)
            if complaint and complaint not in said:
                said.add(complaint)
                yield complaint
            place = (needed, frozenset(requirement.extras))
            if version is not None and place not in seen:
                seen.add(place)
                waiting.append(place)


def _requirements(lines: tuple[str, ...], extras: frozenset[str]) -> Iterator[Requirement]:
    """Yield the requirements that hold on this machine, with these extras."""
    environment = {name: str(value) for name, value in default_environment().items()}
    for line in lines:
        requirement = Requirement(line)
        choices = [environment | {"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(requirement.marker.evaluate(choice) for choice in choices):
            yield requirement


def _complaint(name: str, requirement: Requirement, version: str | None) -> str:
    asked = f"{requirement.name}{requirement.specifier}"
    if version is None:
        return f"{name} needs {asked}, which is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{name} needs {asked}, and {version} is installed"
    return ""


def gather_import(package: str, timeout_s: float) -> ImportFacts:
    """Return how a fresh process fares with the import; blocks for it."""
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return ImportFacts(package, None, "it is not installed")
    return ImportFacts(package, version, ask_python(f"import {package}", (), timeout_s).error)


def check_import(facts: ImportFacts) -> Iterator[Finding]:
    """Yield whether the package can be used at all."""
    if facts.version is None:
        yield problem("node.imports", f"{facts.package}: not installed", f"pip install {PACKAGE}")
    elif facts.error:
        yield problem(
            "node.imports",
            f"{facts.package} {facts.version} cannot be loaded: {facts.error}",
            "install it again in a fresh virtual environment; a missing .so means a package of the system, or the "
            "wrong build for this machine",
        )
    else:
        yield ok("node.imports", f"{facts.package} {facts.version} loads")
