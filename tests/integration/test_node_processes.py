"""The node's hold on real processes: they end when told, their last words are kept, failures are explained."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.node.commands import CommandFailed, SystemCommands
from cluster.node.ray_process import RayChild
from tests.support.node_machines import WORKER
from tests.support.serve_instance import wait_until

pytestmark = pytest.mark.integration


def child(script: str, log_path: Path) -> RayChild:
    return RayChild(["sh", "-c", script], {"GREETING": "hello"}, log_path)


def test_process_that_ends_leaves_its_last_words(tmp_path: Path):
    ray = child("for n in $(seq 20); do echo line $n; done; echo; echo $GREETING; exit 3", tmp_path / "log")
    wait_until(lambda: ray.exit_code() is not None, 10, "end of the process")
    assert ray.exit_code() == 3
    assert ray.last_words().endswith("line 19 | line 20 | hello")
    assert "line 1 " not in ray.last_words()
    ray.stop(1)  # of what has ended already does nothing


def test_process_that_runs_is_ended_in_order(tmp_path: Path):
    ray = child("trap 'echo stopped; exit 0' TERM; echo up; while :; do sleep 0.05; done", tmp_path / "log")
    wait_until(lambda: "up" in ray.last_words(), 10, "start of the process")
    assert ray.exit_code() is None
    ray.stop(10)
    assert ray.exit_code() == 0
    assert "stopped" in ray.last_words()


def test_process_that_does_not_listen_is_killed_with_its_children(tmp_path: Path):
    ray = child("trap '' TERM; sleep 600 & echo $!; wait; sleep 600", tmp_path / "log")
    wait_until(lambda: ray.last_words().strip().isdigit(), 10, "start of the process")
    grandchild = Path("/proc") / ray.last_words().strip()
    started_s = time.monotonic()
    ray.stop(0.2)
    assert time.monotonic() - started_s < 10
    assert ray.exit_code() == -9
    wait_until(lambda: not grandchild.exists() or "Z" in (grandchild / "stat").read_text().split()[2], 10, "its end")


def test_command_that_fails_says_what_it_said():
    commands = SystemCommands()
    assert commands.run("echo", "out") == "out\n"
    with pytest.raises(CommandFailed, match=r"`sh -c echo out; echo why >&2; exit 2` ended with 2: why") as error:
        commands.run("sh", "-c", "echo out; echo why >&2; exit 2")
    assert error.value.exit_code == 2
    with pytest.raises(CommandFailed, match="no-such-program is not installed"):
        commands.run("no-such-program")
    with pytest.raises(CommandFailed, match=r"did not end within 0\.1 s"):
        commands.run("sleep", "10", timeout_s=0.1)


def node_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cluster.node", *words], capture_output=True, text=True, timeout=60)


def test_boot_without_a_config_ends_with_one_sentence(tmp_path: Path):
    done = node_command("boot", "--config", str(tmp_path / "node.json"))
    assert done.returncode == 2
    assert done.stderr == (
        f"{tmp_path}/node.json: cannot be read (No such file or directory); user data writes it at first boot\n"
    )


def test_worker_that_is_told_to_deploy_names_the_head(tmp_path: Path):
    (tmp_path / "node.json").write_text(json.dumps(WORKER))
    done = node_command("deploy", "--config", str(tmp_path / "node.json"))
    assert done.returncode == 2
    assert done.stderr == "node.json has no serve_config; only the head has one: run this there\n"
