"""The tail stays short: modules, functions and classes have limits, configuration is documented, binds are narrow."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from core.config import Config
from tests.support.source_tree import PACKAGES, ROOT, modules, place, tree

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CLASS_LINES = 300

# Name of an offender -> its size and the reason. Only to be shortened: an entry that is no longer needed fails too.
ALLOWED: dict[str, tuple[int, str]] = {}

WIDE_ADDRESSES = {"0.0.0.0", "::", "[::]"}
# Module -> why it may name one.
WIDE_ON_PURPOSE = {
    "cluster/node/serve_config.py": "one Serve config for many machines; their security group admits the load balancer",
}


def oversized() -> dict[str, int]:
    found: dict[str, int] = {}
    for path in modules(*PACKAGES, "benchmarks"):
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_MODULE_LINES:
            found[place(path)] = num_lines
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                limit = MAX_CLASS_LINES
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                limit = MAX_FUNCTION_LINES
            else:
                continue
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > limit:
                found[f"{place(path)} {node.name}"] = num_lines
    return found


def test_no_module_function_or_class_is_past_its_limit():
    too_long = {name: size for name, size in oversized().items() if size > ALLOWED.get(name, (0, ""))[0]}
    assert not too_long, f"split the idea (400 lines a module, 60 a function, 300 a class): {too_long}"


def test_allow_list_only_holds_what_is_still_too_long():
    stale = set(ALLOWED) - set(oversized())
    assert not stale, f"these fit the limits now; take them off the list: {stale}"


def config_classes() -> list[type[Config]]:
    for path in modules():
        if "Config" in path.read_text(encoding="utf-8"):
            importlib.import_module(place(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    found: list[type[Config]] = []
    waiting = list(Config.__subclasses__())
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        # Classes that tests define are not promises of ours.
        if kind.__module__.split(".")[0] != "tests" and not kind.__module__.startswith("test_"):
            found.append(kind)
    return found


def test_every_config_field_says_what_it_does():
    assert len(config_classes()) > 4
    silent = [
        f"{kind.__module__}.{kind.__name__}.{name}"
        for kind in config_classes()
        for name, field in kind.model_fields.items()
        if not (field.description or "").strip()
    ]
    assert not silent, f"write a docstring under each of these fields: {silent}"


def test_every_config_class_is_frozen_and_refuses_unknown_keys():
    loose = [
        kind.__name__
        for kind in config_classes()
        if not kind.model_config.get("frozen") or kind.model_config.get("extra") != "forbid"
    ]
    assert not loose


def wide_addresses(path: Path) -> list[str]:
    """Wildcard addresses a module uses as a value; comparing with one is how it is refused."""
    compared = {
        id(part)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Compare)
        for part in [node.left, *node.comparators]
    }
    return [
        f"{place(path, node)} {node.value}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value in WIDE_ADDRESSES and id(node) not in compared
    ]


def test_nothing_binds_to_every_interface():
    looked_at = [path for path in modules(*PACKAGES, "benchmarks") if place(path) not in WIDE_ON_PURPOSE]
    found = [where for path in looked_at for where in wide_addresses(path)]
    assert not found, f"bind 127.0.0.1 unless the operator names an address: {found}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_no_config_binds_to_every_interface(path: Path):
    hosts = re.findall(r"^\s*\w*host:\s*([^\s#]+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not {host.strip("\"'") for host in hosts} & WIDE_ADDRESSES


def test_no_catch_all_module_names():
    assert not [place(path) for path in modules() if path.stem in {"utils", "util", "helpers", "misc", "common"}]
