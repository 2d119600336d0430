"""The project's HCL as data."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hcl2

from tests.terraform.harness.terraform_cli import ROOT

FOLDER = ROOT / "terraform"


class Block(NamedTuple):
    """One block of a file: `resource "aws_vpc" "this" {`."""

    path: Path
    labels: tuple[str, ...]
    """`("aws_vpc", "this")`."""
    body: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path.relative_to(FOLDER)}: {' '.join(self.labels)}"


def sources() -> list[Path]:
    """Return every .tf file of modules and examples."""
    return sorted(path for path in FOLDER.rglob("*.tf") if ".terraform" not in path.parts)


def modules() -> list[Path]:
    """Return the folders of the modules."""
    return sorted({path.parent for path in sources() if path.is_relative_to(FOLDER / "modules")})


def examples() -> list[Path]:
    """Return the folders of the examples."""
    return sorted({path.parent for path in sources() if path.is_relative_to(FOLDER / "examples")})


def blocks(kind: str) -> Iterator[Block]:
    """Yield every block of a kind: `variable`, `output`, `resource`."""
    for path in sources():
        for block in _read(path).get(kind, []):
            yield from _unfold(path, (), block)


def _unfold(path: Path, labels: tuple[str, ...], block: dict[str, Any]) -> Iterator[Block]:
    if block.get("__is_block__"):
        yield Block(path, labels, block)
        return
    for label, inner in block.items():
        yield from _unfold(path, (*labels, label.strip('"')), inner)


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        return hcl2.load(file)
