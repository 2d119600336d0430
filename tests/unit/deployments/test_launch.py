import io
import json
import shlex
from pathlib import Path

from deployments.gateway.readiness import GroupReport, ModelReport, RankProgress, ReadinessReport
from deployments.launch import StatusLine, base_url, describe_progress, how_to_call, main
from deployments.serve_run import last_words

QUICKSTART = Path("configs/quickstart.yaml")


def loading(*progress, error=None, reason="no replica group is ready"):
    group = GroupReport("g", "m", "starting", 0, 2, list(progress), error)
    return ReadinessReport("not_ready", [ModelReport("m", False, reason, [group])])


def test_progress_names_every_rank_its_phase_and_percent():
    report = loading(RankProgress(0, "load", 45, "model.gguf"), RankProgress(1, "connect", 0, ""))
    assert describe_progress(report) == "m: rank 0: load 45 % model.gguf, rank 1: connect 0 %"


def test_without_progress_the_reason_is_shown():
    assert describe_progress(loading()) == "m: no replica group is ready"


def test_an_error_is_shown_instead_of_the_reason():
    assert describe_progress(loading(error="rank 1 died")) == "m: rank 1 died"


def test_the_curl_line_is_one_line_that_a_shell_takes_apart_into_valid_json():
    text = how_to_call(base_url(QUICKSTART), QUICKSTART, Path("/tmp/x.log"))
    (line,) = [line for line in text.splitlines() if line.startswith("curl ")]
    words = shlex.split(line)
    assert words[1] == "http://127.0.0.1:8000/v1/chat/completions"
    assert json.loads(words[words.index("-d") + 1])["model"] == "smollm2-135m"


def test_where_there_is_no_terminal_each_change_is_one_line():
    stream = io.StringIO()
    line = StatusLine(stream)
    for text in ("a", "a", "b"):
        line.show(text)
    line.end()
    assert stream.getvalue() == "a\nb\n"


def test_on_a_terminal_a_shorter_text_leaves_nothing_of_the_longer_one():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    line = StatusLine(stream)
    line.show("loading")
    line.show("ok")
    assert stream.getvalue() == "\rloading\rok     "


def test_a_config_with_a_typo_is_refused_before_anything_starts(tmp_path, capfd):
    path = tmp_path / "typo.yaml"
    path.write_text(QUICKSTART.read_text().replace("num_replicas", "num_replica", 1))
    assert main([str(path)]) == 2
    assert "num_replica: unknown key" in capfd.readouterr().err


def test_the_error_is_found_in_the_advice_serve_wraps_it_in():
    message = (
        "The deployment failed to start 1 times in a row. This may be due to a problem with its constructor. Error:\n"
        "\x1b[36mray::ServeReplica()\x1b[39m (pid=1, ip=127.0.0.1)\n"
        '  File "model_replica.py", line 60, in _start\n'
        "    raise failure\n"
        "core.errors.Unshardable: tensor_parallel_size=4 does not fit num_key_value_heads=3; use 1, 2 or 3\n"
    )
    summary = "Failed to update the deployments ['ReplicaGroup']."
    assert last_words([summary, message]).startswith("Unshardable: tensor_parallel_size=4 does not fit")


def test_a_message_without_an_error_is_shown_on_one_line():
    assert last_words(["no room\n  in the cluster\n"]) == "no room in the cluster"


def test_a_config_that_is_not_there_is_named(tmp_path, capfd):
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capfd.readouterr().err
