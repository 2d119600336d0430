"""Who may import whom, asked of the running interpreter: what a fresh process has loaded after the import."""

import subprocess
import sys

import pytest

from tests.support.source_tree import PACKAGES, ROOT, imported_names, modules, place

LAYERS = {name: position for position, name in enumerate(PACKAGES)}
WEB_AND_CLUSTER = ("ray", "starlette", "fastapi", "uvicorn", "aiohttp", "httpx")


def module_names(*folders: str) -> list[str]:
    return [
        place(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in modules(*folders)
        # Running `python -m` modules is their purpose, importing them is not.
        if path.name != "__main__.py"
    ]


def loaded_after_importing(names: list[str], suspects: tuple[str, ...]) -> list[str]:
    """Import `names` in a fresh interpreter; return those of `suspects` that came along."""
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(' '.join(name for name in {suspects!r} if name in sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_core_parallel_and_engine_load_neither_ray_nor_http():
    assert loaded_after_importing(module_names("core", "parallel", "engine"), WEB_AND_CLUSTER) == []


@pytest.mark.parametrize(
    "name",
    [
        "deployments.gateway.gateway",
        "deployments.app",
        "deployments.groups.directory",
        "engine.engine",
        "engine.tokenizer",
        "engine.text",
        "cluster.replica_group",
        "parallel.sharding",
        "parallel.models.spec",
        "parallel.checkpoint.reader",
    ],
)
def test_gateway_and_leader_modules_do_not_load_torch(name: str):
    assert loaded_after_importing([name], ("torch", "transformers")) == []


def test_imports_point_downward():
    upward = [
        f"{place(path, node)} imports {name}"
        for path in modules()
        for node, name in imported_names(path)
        if LAYERS.get(name.split(".")[0], -1) > LAYERS[place(path).split("/")[0]]
    ]
    assert not upward


def test_private_names_of_serve_are_used_in_one_file_at_most():
    users = {
        place(path)
        for path in modules()
        for _, name in imported_names(path)
        if name.startswith(("ray.serve._private", "ray._private"))
    }
    assert len(users) <= 1, f"one file to look at when Ray is upgraded: {users}"
