"""Terraform run on copies of the project's modules, with the provider from a mirror if this machine has one."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[3]
HOW_TO_INSTALL = "terraform is not installed: https://developer.hashicorp.com/terraform/install, 1.11 or newer"
_MIRROR_VARIABLE = "EAGLERAY_TF_PLUGINS"
_USUAL_MIRRORS = ("/usr/local/share/terraform/plugins", "/usr/share/terraform/plugins", "/opt/tf-plugins")
_PROVIDER = "registry.terraform.io/hashicorp/aws"
_WORDS_KEPT = 6000


class TerraformFailed(Exception):
    """A command ended with another exit code than 0; the message has its output."""


class Change(NamedTuple):
    """What a plan would do to one resource."""

    address: str
    actions: tuple[str, ...]
    replaced_for: str = ""
    """The arguments that cannot be changed in place."""


def find_terraform() -> str | None:
    """Return the program, None if this machine has none."""
    return shutil.which("terraform")


def find_mirror() -> Path | None:
    """Return a folder with providers: what EAGLERAY_TF_PLUGINS names, else a usual place that has ours."""
    named = os.environ.get(_MIRROR_VARIABLE)
    if named:
        return Path(named)
    return next((Path(place) for place in _USUAL_MIRRORS if (Path(place) / _PROVIDER).is_dir()), None)


def copy_sources(folder: Path) -> Path:
    """Copy terraform/ without what commands left in it; return the copy."""
    return shutil.copytree(
        ROOT / "terraform", folder / "terraform", ignore=shutil.ignore_patterns(".terraform", ".terraform.lock.hcl")
    )


def terraform_environment(folder: Path) -> dict[str, str]:
    """Return the environment of every command; writes the CLI configuration that names the mirror into `folder`.

    Without a mirror the provider is downloaded once, into .venv-infra.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "AWS_"))}
    settings = folder / "terraform.tfrc"
    mirror = find_mirror()
    if mirror is None:
        cache = ROOT / ".venv-infra" / "terraform-plugins"
        cache.mkdir(parents=True, exist_ok=True)
        settings.write_text(f'plugin_cache_dir = "{cache}"\ndisable_checkpoint = true\n')
    else:
        settings.write_text(
            f'provider_installation {{\n  filesystem_mirror {{\n    path = "{mirror}"\n  }}\n}}\n'
            "disable_checkpoint = true\n"
        )
    return environment | {"TF_CLI_CONFIG_FILE": str(settings), "TF_IN_AUTOMATION": "1", "TF_INPUT": "0"}


class Terraform:
    """Terraform in one folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = dict(environment)

    def run(self, *arguments: str, timeout_s: float = 180) -> str:
        """Return what a command wrote to stdout. Raises TerraformFailed."""
        program = find_terraform()
        assert program is not None, HOW_TO_INSTALL
        done = subprocess.run(
            [program, *arguments],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr)[-_WORDS_KEPT:]
            raise TerraformFailed(f"terraform {' '.join(arguments)} in {self.folder.name}: {done.returncode}\n{said}")
        return done.stdout

    def init(self) -> None:
        """Have modules and provider at hand."""
        self.run("init", "-no-color", "-backend=false", timeout_s=600)

    def plan(self, name: str, *options: str) -> list[Change]:
        """Write a plan to the file `name`; return what it would change, reads left out."""
        self.run("plan", "-no-color", "-lock=false", f"-out={name}", *options)
        plan = self._json("show", "-json", name)
        changes = [
            Change(
                change["address"],
                tuple(change["change"]["actions"]),
                " ".join(".".join(map(str, path)) for path in change["change"].get("replace_paths", [])),
            )
            for change in plan.get("resource_changes", [])
        ]
        return [change for change in changes if change.actions not in (("no-op",), ("read",))]

    def outputs(self) -> dict[str, Any]:
        """Return the value of every output."""
        return {name: output["value"] for name, output in self._json("output", "-json").items()}

    def _json(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.run(*arguments))
