"""The doctor against real servers: a gateway over HTTP, a proxy that buffers, a stranger, Ray under a model."""

import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import ray

from deployments.doctor import probing
from deployments.doctor.inside import ask, ask_python
from deployments.doctor.server.probes import server_probes
from deployments.gateway.config import GatewayConfig
from tests.support.fake_groups import ScriptedGroup
from tests.support.http_servers import http_gateway
from tests.support.serve_instance import free_port, model_args, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

KEY = "sk-doctor"
LOCKED = GatewayConfig(api_keys_sha256=(hashlib.sha256(KEY.encode()).hexdigest(),))


def examine(url, key=None):
    return {(finding.level, finding.check): finding.found for finding in probing.run(server_probes(url, key))}


def test_commands_that_fail_hang_or_do_not_exist_are_told_apart():
    assert ask(["no-such-program-here"], 1) is None
    assert ask_python("import sys; sys.exit('three\\nbears')", (), 30).error == "bears"
    assert "no answer within 0.2 s" in ask_python("import time; time.sleep(60)", (), 0.2).error
    assert ask_python("print('yes')", (), 30) == ("yes\n", "")


def test_a_server_in_order_is_ok_throughout_with_its_key():
    with http_gateway([ScriptedGroup("1, 2, 3, 4, 5, 6, 7")], LOCKED) as url:
        found = examine(url, KEY)
    # The one thing that is odd about it: this group says that torch computes.
    complaints = {key: text for key, text in found.items() if key[0] in ("warning", "problem")}
    assert list(complaints) == [("warning", "server.kernels")]
    assert complaints["warning", "server.kernels"].startswith("tiny: plain torch computes")
    assert {"server.alive", "server.clock", "server.ready", "server.key", "server.completion", "server.metrics"} <= {
        check for _, check in found
    }


def test_without_the_key_the_server_is_alive_and_closed():
    with http_gateway([ScriptedGroup()], LOCKED) as url:
        found = examine(url)
    assert ("ok", "server.alive") in found
    assert "wants an API key" in found["problem", "server.key"]
    assert ("warning", "server.metrics") in found


def test_a_server_that_is_not_there_is_one_problem_and_not_six():
    found = examine(f"http://127.0.0.1:{free_port()}")
    assert list(found) == [("problem", "server.alive")]
    assert "Connection refused" in found["problem", "server.alive"]


@contextmanager
def a_server(handle):
    """Serve connections with `handle(connection)`, each in a thread; yields the URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_something_that_is_no_http_server_is_told():
    def gibberish(connection):
        connection.recv(1000)
        connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
        connection.close()

    with a_server(gibberish) as url:
        assert "not in HTTP" in examine(url)["problem", "server.alive"]


def event_stream(connection, *, is_buffered):
    """Answer a request with 12 events in 0.6 s, or with all of them at the end."""
    request = b""
    while not request.endswith(b"{}"):
        request += connection.recv(100_000)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    held = head
    for event in [b"data: {}\n\n"] * 11 + [b"data: [DONE]\n\n"]:
        time.sleep(0.05)
        held += event
        if not is_buffered:
            connection.sendall(held)
            held = b""
    connection.sendall(held)
    connection.close()


@pytest.mark.parametrize(("is_buffered", "level"), [(True, "problem"), (False, "ok")])
def test_a_proxy_that_keeps_a_stream_back_is_found(is_buffered, level):
    from deployments.doctor.server import answers
    from deployments.doctor.server.asking import Server

    with a_server(lambda connection: event_stream(connection, is_buffered=is_buffered)) as url:
        facts = answers.stream_facts(Server(url, None, 10).post("/v1/completions", {}))
    assert [finding.level for finding in answers.check_stream("m", facts)] == [level]


def test_the_command_examines_a_served_model_and_the_ray_cluster_under_it(served):
    served.deploy("doctored", model_args("quickstart.yaml", name="doctored"))
    try:
        wait_until(lambda: served.models() == ["doctored"], 30, "models of other tests are forgotten")
        run = subprocess.run(
            [sys.executable, "-m", "deployments.doctor", served.url, "--json", "--timeout-factor", "2"]
            + ["--ray", ray.get_runtime_context().gcs_address],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    finally:
        served.delete("doctored")
    report = json.loads(run.stdout)
    found = {(finding["level"], finding["check"]): finding["found"] for finding in report["findings"]}
    assert run.returncode == report["exit_code"]
    assert not {key: text for key, text in found.items() if key[0] == "problem"}
    assert "1 nodes" in found["ok", "ray.gcs"]
    assert ("ok", "ray.applications") in found
    assert ("ok", "server.completion") in found
    assert ("ok", "server.stream") in found
