"""`python -m deployments.launch`, as `make serve` runs it: a server of its own on a free port, and its end."""

import contextlib
import json
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from core.config import read_yaml
from tests.support.serve_instance import free_port, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

START_TIMEOUT_S = 150


def quickstart(tmp_path, **parallel):
    """Return a copy of the quickstart on a free port."""
    config = read_yaml(Path("configs/quickstart.yaml"))
    config["http_options"]["port"] = free_port()
    config["applications"][1]["args"]["parallel"] |= parallel
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextlib.contextmanager
def launched(config, tmp_path):
    """Run the launcher in a session of its own, output into files; nothing of it is left after the block."""
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.launch", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    family = []
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def test_the_printed_curl_line_answers_and_ctrl_c_leaves_no_process(tmp_path):
    with launched(quickstart(tmp_path), tmp_path) as process:
        out = tmp_path / "out"
        wait_until(lambda: "curl" in out.read_text() or process.poll() is not None, START_TIMEOUT_S, "the curl line")
        assert process.poll() is None, (tmp_path / "err").read_text()
        assert "rank 0: " in out.read_text()
        assert "Paris" in answer_to(next(line for line in out.read_text().splitlines() if line.startswith("curl")))
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 5
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        _, left = psutil.wait_procs(family, timeout=5)
        assert not left


def answer_to(curl_line):
    """Do what the curl line does; return the answer's text."""
    _, url, _, header, _, body = shlex.split(curl_line)
    name, _, value = header.partition(": ")
    request = urllib.request.Request(url, body.encode(), {name: value})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def test_a_model_that_cannot_be_split_ends_the_launcher_with_its_reason(tmp_path):
    with launched(quickstart(tmp_path, tensor_parallel_size=5), tmp_path) as process:
        assert process.wait(timeout=START_TIMEOUT_S) == 2
        errors = (tmp_path / "err").read_text()
    assert "Unshardable: num_attention_heads=9 with num_key_value_heads=3 cannot be split" in errors
    assert "use 1, 2, 3 or 9" in errors
