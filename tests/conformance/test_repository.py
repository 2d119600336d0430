"""What the front page promises is there: commands, files, links, and numbers with a source."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.support.source_tree import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_make_commands_named_in_the_pages_exist():
    named = {
        target for page in PAGES for target in re.findall(r"^ *make ([a-z-]+)", page.read_text(), flags=re.MULTILINE)
    }
    assert named, "the README shows how to start"
    assert named <= make_targets()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    broken = [link for link in links if not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_modules_and_files_named_in_the_pages_exist(page: Path):
    named = re.findall(
        r"`((?:core|parallel|engine|cluster|deployments|configs|benchmarks|tests|docs)/[\w./-]+)`", page.read_text()
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_continuous_integration_runs_the_test_command_of_the_readme():
    assert "make test" in (ROOT / "README.md").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_changelog_has_the_released_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_result_says_on_which_machine_and_commit_it_was_measured(path: Path):
    result = json.loads(path.read_text())
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", result["commit"])
    assert result["machine"]["cpu"] and result["machine"]["cores"] > 0 and result["machine"]["memory_gib"] > 0
    assert re.match(r"\d{4}-\d{2}-\d{2}T", result["started_at"])
