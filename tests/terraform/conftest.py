"""What the tests of Terraform share: one copy of the sources, one AWS, one applied example."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terraform.harness.example_cluster import ExampleCluster
from tests.terraform.harness.fake_aws import FakeAws
from tests.terraform.harness.report import Report
from tests.terraform.harness.terraform_cli import HOW_TO_INSTALL, copy_sources, find_terraform, terraform_environment

_REPORT = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """Environment of every Terraform command; skips where there is no Terraform."""
    if find_terraform() is None:
        pytest.skip(HOW_TO_INSTALL)
    return terraform_environment(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> Path:
    """A copy of terraform/ that commands may leave files in."""
    return copy_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def aws() -> Iterator[FakeAws]:
    """The AWS that everything speaks to."""
    with FakeAws() as fake:
        yield fake


@pytest.fixture(scope="session")
def cluster(sources, environment, aws, report) -> ExampleCluster:
    """The applied example. What moto holds of it ends with this process."""
    applied = ExampleCluster(sources, environment, aws, report)
    applied.apply()
    return applied


@pytest.fixture(scope="session")
def report(pytestconfig) -> Report:
    """What steps cost; printed at the end of the run."""
    return pytestconfig.stash[_REPORT]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_REPORT].lines():
        terminalreporter.write_line(line)
