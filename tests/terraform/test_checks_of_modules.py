"""`terraform test` of each module: plans with a mocked provider, and a run for every mistake that is refused."""

import re

import pytest

from tests.terraform.harness.hcl_files import FOLDER, blocks, modules
from tests.terraform.harness.terraform_cli import Terraform

pytestmark = pytest.mark.timeout(240)

TESTED = [module for module in modules() if list(module.rglob("*.tftest.hcl"))]
COUNT = re.compile(r"(\d+) passed, (\d+) failed")


@pytest.mark.parametrize("module", TESTED, ids=lambda path: path.name)
def test_module_plans_what_it_promises_and_refuses_mistakes(module, sources, environment, report):
    terraform = Terraform(sources / "modules" / module.name, environment)
    with report.step(f"terraform test {module.name}"):
        terraform.init()
        said = terraform.run("test", "-no-color", timeout_s=200)
    passed = COUNT.search(said)
    assert passed is not None and int(passed[1]) > 0, said
    report.note(f"runs of {module.name}", passed[0])


def test_every_validation_has_a_run_that_trips_it():
    """Counted, for a run names the variable and not which of its validations it trips."""
    for module in modules():
        tests = "".join(path.read_text() for path in module.rglob("*.tftest.hcl"))
        for variable in blocks("variable"):
            num_validations = len(variable.body.get("validation", []))
            if variable.path.parent == module and num_validations:
                num_runs = len(re.findall(rf"expect_failures\s*=\s*\[[^\]]*\bvar\.{variable.labels[0]}\b", tests))
                assert num_runs >= num_validations, f"{module.name}: {variable.labels[0]} has {num_runs} runs"


def test_only_the_module_of_the_token_has_no_test_with_mocks():
    """Mocked providers have no ephemeral values before Terraform 1.13; test_cluster_apply.py covers it."""
    assert {module.name for module in modules()} - {module.name for module in TESTED} <= {"token"}
    assert (FOLDER / "modules" / "token").is_dir()
