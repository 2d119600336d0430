"""The strict check of Serve configs. Each case takes the quickstart and breaks one thing in it."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest

from core.config import read_yaml
from deployments.check import check_config, check_file, main

CONFIGS = sorted(Path("configs").glob("*.yaml"))
QUICKSTART = Path("configs/quickstart.yaml")


def quickstart_with(path, value):
    """Return the quickstart with `value` at `path`; the last step may be a new key."""
    data = copy.deepcopy(read_yaml(QUICKSTART))
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return data


def test_there_are_configs_to_check():
    assert QUICKSTART in CONFIGS
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_we_ship_is_sound(path):
    assert check_file(path) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_we_ship_sets_what_serve_defaults_badly(path):
    for application in read_yaml(path)["applications"]:
        for deployment in application["deployments"]:
            assert {
                "max_ongoing_requests",
                "max_queued_requests",
                "graceful_shutdown_timeout_s",
                "health_check_period_s",
                "health_check_timeout_s",
            } <= set(deployment), f"{path}: {deployment['name']}"


@pytest.mark.parametrize(
    "path",
    [
        ("htp_options",),
        ("http_options", "hosst"),
        ("logging_config", "enable_acess_log"),
        ("applications", 0, "argz"),
        ("applications", 0, "args", "modells"),
        ("applications", 0, "deployments", 0, "num_replica"),
        ("applications", 0, "deployments", 0, "ray_actor_options", "num_cpu"),
        ("applications", 1, "args", "model", "sauce"),
        ("applications", 1, "args", "parallel", "tensor_paralel_size"),
        ("applications", 1, "args", "placement", "max_atempts"),
        ("applications", 1, "deployments", 0, "autoscaling_config"),
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_a_misspelt_key_is_named_with_its_path_at_every_level(path):
    value = {"min_replica": 1} if path[-1] == "autoscaling_config" else 1
    problems = check_config(quickstart_with(path, value))
    assert any(".".join(map(str, path)) in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("applications", 1, "args", "parallel", "tensor_parallel_size"), 0, "greater than 0"),
        (("applications", 1, "args", "cache", "memory"), "lots", "memory"),
        (("applications", 1, "args", "model", "dtype"), "int3", "dtype"),
        (("applications", 1, "args", "drain_timeout_s"), 30, "graceful_shutdown_timeout_s=30"),
        (("applications", 1, "args", "drain_timeout_s"), 26, "5 s to hand streams over"),
        (("applications", 1, "args", "gateway"), "gatway", "no gateway application 'gatway'"),
        (("applications", 1, "route_prefix"), "/model", "route_prefix: null"),
        (("applications", 1, "deployments", 0, "name"), "Replica", "use ReplicaGroup"),
        (("applications", 1, "deployments", 0, "user_config"), {"max_running": 1}, "no live settings"),
        (("applications", 0, "deployments", 0, "num_replicas"), 0, "num_replicas"),
        (("http_options", "request_timeout_s"), None, "hangs for ever"),
        (("applications",), [], "no application"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_value_that_cannot_work_is_refused_with_a_reason(path, value, words):
    problems = check_config(quickstart_with(path, value))
    assert any(words in problem for problem in problems), problems


def test_two_problems_are_two_lines():
    data = quickstart_with(("applications", 1, "args", "cache", "blok_size"), 16)
    data["htp_options"] = {}
    assert len(check_config(data)) == 2


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"], ids=["a list", "broken", "binary"])
def test_a_file_that_is_not_a_mapping_is_one_problem(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert len(check_file(path)) == 1


def test_the_command_names_the_file_and_exits_2(tmp_path, capsys):
    path = tmp_path / "typo.yaml"
    path.write_text(QUICKSTART.read_text().replace("num_replicas", "num_replica", 1))
    assert main([str(QUICKSTART), str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}: applications.0.deployments.0.num_replica: unknown key")


def test_a_file_that_is_not_there_is_a_problem_not_a_traceback(capsys):
    assert main(["nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "nowhere.yaml: cannot be read (No such file or directory)\n"


def test_the_check_loads_no_torch():
    code = "import sys, deployments.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("host", "keys", "is_sound"),
    [
        ("127.0.0.1", {}, True),
        ("localhost", {}, True),
        ("::1", {}, True),
        ("0.0.0.0", {}, False),
        ("10.0.0.7", {}, False),
        ("gateway.internal", {}, False),
        ("0.0.0.0", {"api_keys": [{"name": "acme", "sha256": "0" * 64}]}, True),
        ("0.0.0.0", {"api_keys_sha256": ["0" * 64]}, True),
        ("0.0.0.0", {"api_keys_file": "/etc/eagleray/keys.yaml"}, True),
        ("0.0.0.0", {"allow_anonymous": True}, True),
        ("0.0.0.0", {"api_keys": []}, False),
    ],
)
def test_other_machines_are_let_in_with_keys_only(host, keys, is_sound):
    data = quickstart_with(["http_options", "host"], host)
    data["applications"][0]["args"] |= keys
    problems = check_config(data)
    assert (not problems) is is_sound
    assert is_sound or ("no API keys" in problems[0] and f"host={host}" in problems[0])


def test_serves_own_default_of_every_interface_needs_keys_too():
    data = copy.deepcopy(read_yaml(QUICKSTART))
    del data["http_options"]["host"]
    assert "host=0.0.0.0" in check_config(data)[0]
