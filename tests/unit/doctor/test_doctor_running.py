"""Probes are kept apart, none hangs the doctor, and what it says has the right form and exit code."""

import ast
import json
import threading

import pytest

from deployments.doctor import __main__ as command
from deployments.doctor import probing, report
from deployments.doctor.finding import exit_code, note, ok, problem, warning
from deployments.doctor.probing import Probe
from tests.support.source_tree import ROOT, modules, place, tree


def test_a_probe_that_breaks_says_so_and_the_others_have_their_say():
    def broken():
        raise ImportError("No module named 'numpy'")

    findings = probing.run([Probe("a", broken), Probe("b", lambda: [ok("b", "fine")])])
    assert [(finding.level, finding.check) for finding in findings] == [("warning", "a"), ("ok", "b")]
    assert "ImportError: No module named 'numpy'" in findings[0].found


def test_a_probe_that_hangs_is_given_up_at_its_limit():
    never = threading.Event()
    findings = probing.run(
        [Probe("hangs", lambda: [ok("x", str(never.wait(30)))], timeout_s=0.05), Probe("b", lambda: [ok("b", "fine")])]
    )
    never.set()
    assert [(finding.level, finding.check) for finding in findings] == [("warning", "hangs"), ("ok", "b")]
    assert "0.05 s" in findings[0].found


def test_what_was_found_before_a_probe_broke_is_replaced_by_why_it_broke():
    def half():
        yield ok("a", "first")
        raise ValueError("second")

    (finding,) = probing.run([Probe("a", half)])
    assert finding.found == "cannot be looked at: ValueError: second"


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([ok("a", "x"), note("b", "x")], 0),
        ([ok("a", "x"), warning("b", "x", "do")], 1),
        ([warning("b", "x", "do"), problem("c", "x", "do")], 2),
    ],
)
def test_the_exit_code_is_that_of_the_gravest_finding(findings, code):
    assert exit_code(findings) == code


FINDINGS = [problem("node.shm", "64 MiB", "--shm-size=4g"), ok("node.cpu", "avx2"), note("node.gpu", "none")]


def test_the_text_ends_with_the_gravest_findings_and_the_counts_and_has_no_colour_off_a_terminal():
    lines = report.as_text(FINDINGS, is_coloured=False, is_whole=True).splitlines()
    assert lines[0].startswith("ok       node.cpu  avx2")
    assert lines[2].startswith("problem  node.shm  64 MiB")
    assert lines[3].strip() == "-> --shm-size=4g"
    assert lines[-1] == "3 checks: 1 ok, 1 note, 0 warnings, 1 problem"
    assert "\033" not in "".join(lines)
    assert "\033[31mproblem" in report.as_text(FINDINGS, is_coloured=True, is_whole=True)


def test_quiet_text_leaves_out_what_is_as_it_should_be():
    assert "node.cpu" not in report.as_text(FINDINGS, is_coloured=False, is_whole=False)


def test_json_has_every_field_of_every_finding_and_the_exit_code():
    said = json.loads(report.as_json(FINDINGS))
    assert said["exit_code"] == 2
    assert said["findings"][0] == {
        "level": "problem",
        "check": "node.shm",
        "found": "64 MiB",
        "advice": "--shm-size=4g",
    }


def test_the_command_writes_json_and_returns_the_code(monkeypatch, capsys):
    monkeypatch.setattr(command, "_probes", lambda what, key: [Probe("a", lambda: [warning("a", what, "do")])])
    assert command.main(["configs/x.yaml", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["found"] == "configs/x.yaml"


def test_a_key_file_that_is_not_there_is_told(capsys):
    assert command.main(["http://127.0.0.1:1", "--api-key-file", "/nowhere/key"]) == 2
    assert "/nowhere/key: cannot be read" in capsys.readouterr().err


def test_the_key_comes_from_a_file_or_the_environment_and_never_from_the_command_line(monkeypatch, tmp_path):
    path = tmp_path / "key"
    path.write_text("sk-from-file\n")
    monkeypatch.setenv("EAGLERAY_API_KEY", "sk-from-environment")
    keys = []
    monkeypatch.setattr(command, "_probes", lambda what, key: keys.append(key) or [])
    command.main(["http://a", "--api-key-file", str(path)])
    command.main(["http://a"])
    assert keys == ["sk-from-file", "sk-from-environment"]
    with pytest.raises(SystemExit):
        command.main(["http://a", "--api-key", "sk-typed"])


def calls_that_find():
    """(level, check) of every finding that the doctor's source can make; a name that is a variable is left out."""
    found = set()
    for path in modules("deployments"):
        if not place(path).startswith("deployments/doctor/"):
            continue
        for node in ast.walk(tree(path)):
            is_finding = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if is_finding and node.func.id in ("note", "ok", "problem", "warning") and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant):
                    found.add((node.func.id, name.value))
    return found


def test_every_warning_and_problem_has_a_test_that_trips_it():
    text = "".join(path.read_text() for path in (ROOT / "tests" / "unit" / "doctor").glob("*.py"))
    pairs = {(level, check) for level, check in calls_that_find() if level in ("warning", "problem")}
    assert len(pairs) > 30
    untested = [
        (level, check) for level, check in sorted(pairs) if f'"{check}"' not in text or f'"{level}"' not in text
    ]
    assert not untested


def test_the_page_explains_every_check():
    page = (ROOT / "docs" / "doctor.md").read_text()
    unexplained = sorted({check for _, check in calls_that_find() if f"`{check}`" not in page})
    assert not unexplained
