"""Nothing that crosses a socket, a file or shared memory can become code, and nobody but us is listened to."""

import ast
import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deployments.token_channel.server import TokenChannelServer
from engine.rank_pools.options import PoolOptions
from engine.rank_pools.reception import Reception
from tests.support.fake_groups import ScriptedGroup
from tests.support.source_tree import imported_names, modules, place, tree

UNSAFE_MODULES = {
    "pickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "jsonpickle",
    "marshal",
    "ray.cloudpickle",
    "shelve",
    # What they send to each other is pickled.
    "multiprocessing.connection",
    "multiprocessing.managers",
    "multiprocessing.queues",
}
UNSAFE_ATTRIBUTES = {
    "recv_pyobj",
    "send_pyobj",
    "all_gather_object",
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
    "add_safe_globals",
}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.jit.load",
    "torch.export.load",
    "torch.package.PackageImporter",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "dist.all_gather_object",
}
LISTENERS = {"engine/rank_pools/reception.py", "parallel/groups/store.py", "deployments/token_channel/server.py"}
"""The only places that listen. Each is told its address; whoever adds one adds its default to the tests below."""
LISTENING_CALLS = {"create_server", "start_server", "start_unix_server", "listen", "HTTPServer", "ThreadingHTTPServer"}


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` of such an expression, with `?` for what is no name."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, name):
            return f"{dotted(value)}.{name}"
        case _:
            return "?"


def unsafe_uses(module: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield every use of what makes objects or code out of bytes."""
    for node in ast.walk(module):
        match node:
            case ast.Attribute(attr=name) if name in UNSAFE_ATTRIBUTES:
                yield node, name
            case ast.alias(name=name) if name in UNSAFE_ATTRIBUTES:
                yield node, name
            case ast.Call(func=function, keywords=keywords):
                name = dotted(function)
                if name in UNSAFE_CALLS or (name.startswith(("np.", "numpy.")) and allows_pickle(keywords)):
                    yield node, name
                if any(key.arg == "trust_remote_code" and not is_false(key.value) for key in keywords):
                    yield node, "trust_remote_code"
            case _:
                pass


def allows_pickle(keywords: list[ast.keyword]) -> bool:
    return any(key.arg == "allow_pickle" and not is_false(key.value) for key in keywords)


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def unsafe_imports(path: Path) -> list[str]:
    return [
        f"{place(path, node)} {name}"
        for node, name in imported_names(path)
        if name in UNSAFE_MODULES or name.split(".")[0] in UNSAFE_MODULES
    ]


def test_nothing_that_runs_bytes_as_code_is_imported():
    unsafe = [found for path in modules() for found in unsafe_imports(path)]
    assert not unsafe, f"sockets and files carry msgpack, fixed binary frames or safetensors, never code: {unsafe}"


def test_nothing_that_runs_bytes_as_code_is_called():
    unsafe = [f"{place(path, node)} {name}" for path in modules() for node, name in unsafe_uses(tree(path))]
    assert not unsafe, f"these make objects or code out of bytes: {unsafe}"


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "socket.recv_pyobj()",
        "self._group.broadcast_object_list(items)",
        "from torch.distributed import all_gather_object",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
        "AutoModel.from_pretrained(path, trust_remote_code=flag)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str):
    assert list(unsafe_uses(ast.parse(source)))


@pytest.mark.parametrize("source", ["np.load(path, allow_pickle=False)", "yaml.safe_load(text)", "model.load(tensors)"])
def test_the_search_leaves_what_is_safe(source: str):
    assert not list(unsafe_uses(ast.parse(source)))


def test_only_known_modules_listen():
    found = {
        place(path)
        for path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LISTENING_CALLS
    }
    assert found == LISTENERS


def listening_addresses() -> set[tuple[str, int]]:
    """Return where this process listens now."""
    connections = psutil.Process().net_connections(kind="tcp")
    return {(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN}


def test_ranks_are_awaited_on_loopback_unless_configured():
    before = listening_addresses()
    with Reception(PoolOptions().leader_host, max_seats=1, secret=b"x") as reception:
        assert listening_addresses() - before == {("127.0.0.1", reception.port)}


def test_gateways_are_awaited_on_loopback_unless_configured():
    async def main():
        before = listening_addresses()
        server = TokenChannelServer(ScriptedGroup(), b"secret")
        address = await server.start()
        assert listening_addresses() - before == {("127.0.0.1", address.port)}
        await server.close()

    asyncio.run(main())


def test_ranks_meet_on_the_address_they_are_given_and_no_other():
    from parallel.groups.store import _serve

    before = listening_addresses()
    store = _serve("127.0.0.1", timeout_s=5)
    assert listening_addresses() - before == {("127.0.0.1", store.port)}


def test_no_other_address_of_this_machine_answers_where_a_listener_of_ours_is():
    with Reception("127.0.0.1", max_seats=1, secret=b"x") as reception, pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", reception.port), timeout=1)
