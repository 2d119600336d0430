"""The project's own Python files and their syntax trees, for tests about the source itself."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "parallel", "engine", "cluster", "deployments")


@cache
def modules(*folders: str) -> tuple[Path, ...]:
    """Return every Python file under the folders of the repository, the five packages by default."""
    return tuple(sorted(path for folder in folders or PACKAGES for path in (ROOT / folder).rglob("*.py")))


@cache
def tree(path: Path) -> ast.Module:
    """Return the file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def place(path: Path, node: ast.AST | None = None) -> str:
    """Return `folder/file.py` or `folder/file.py:line`, for messages."""
    name = path.relative_to(ROOT).as_posix()
    return name if node is None else f"{name}:{getattr(node, 'lineno', 0)}"


def imported_names(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Yield every module a file imports, anywhere in it, with the importing node."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module
