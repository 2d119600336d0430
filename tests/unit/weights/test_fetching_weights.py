import threading
from pathlib import Path

import pytest

from cluster.weights import fetch
from cluster.weights.__main__ import main
from cluster.weights.partial import journal_of
from core.errors import CheckpointError, NotReady, ReplicaFailed

URI = "s3://models/llama"
BIG = "models/llama/model.safetensors"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSES_S", (0.0, 0.0))


def silent(done, total, name):
    pass


def test_a_folder_in_s3_becomes_the_same_folder_here_without_what_no_model_needs(s3, files):
    located = files().locate(URI, None, silent)
    there = {path.name: path.read_bytes() for path in located.path.iterdir()}
    assert there == {
        name: s3.objects[f"models/llama/{name}"] for name in ("config.json", "model.safetensors", "empty.json")
    }
    assert located.source == URI


def test_a_gguf_file_in_s3_becomes_a_file_here(s3, files):
    s3.objects["models/tiny.gguf"] = b"GGUF"
    path = files().locate("s3://models/tiny.gguf", None, silent).path
    assert (path.name, path.read_bytes()) == ("tiny.gguf", b"GGUF")


def test_large_files_come_in_ranges_and_small_memory(s3, files):
    files().locate(URI, None, silent)
    ranges = [wanted for path, wanted in s3.ranges if path == BIG]
    assert sorted(ranges) == sorted(
        f"bytes={start}-{min(start + 2**18, 1255000) - 1}" for start in range(0, 1255000, 2**18)
    )


def test_what_is_here_is_not_asked_for_again(s3, files):
    located = files().locate(URI, None, silent)
    s3.requests.clear()
    assert files().locate(URI, located.revision, silent) == located
    assert s3.requests == []


def test_a_tokenizer_costs_no_weights_and_the_weights_come_later(s3, files):
    folder = files().locate_tokenizer(URI, None)
    assert {path.name for path in folder.iterdir()} == {"config.json", "empty.json"}
    assert files().locate(URI, None, silent).path == folder
    assert (folder / "model.safetensors").exists()


def test_processes_that_ask_together_fetch_once(s3, files):
    s3.bytes_per_s = 20e6
    threads = [threading.Thread(target=files().locate, args=(URI, None, silent)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(s3.ranges) == len(set(s3.ranges))


def test_a_range_that_breaks_off_is_fetched_again(s3, files):
    s3.cuts[BIG] = 2
    folder = files().locate(URI, None, silent).path
    assert (folder / "model.safetensors").read_bytes() == s3.objects[BIG]


def test_a_file_that_is_whole_is_not_fetched_again_after_a_failure(s3, files):
    s3.cuts[BIG] = 3
    # The same object, as a process has it that tries again.
    fetcher = files(streams=1)
    with pytest.raises(ReplicaFailed):
        fetcher.locate(URI, None, silent)
    s3.cuts[BIG] = 0
    folder = fetcher.locate(URI, None, silent).path
    assert (folder / "model.safetensors").read_bytes() == s3.objects[BIG]
    assert [path for path, _ in s3.ranges].count("models/llama/config.json") == 1


def test_after_a_crash_only_the_parts_that_are_missing_are_fetched(s3, files, weights):
    first = files(streams=1)

    def stop_in_the_middle(done, total, name):
        if done > total // 2:
            first.close()

    s3.bytes_per_s = 1e6
    with pytest.raises(NotReady):
        first.locate(URI, None, stop_in_the_middle)
    (partial,) = (weights.folder / "partial").glob("*/model.safetensors")
    num_noted = len(journal_of(partial).read_text().splitlines()) - 1
    assert num_noted > 0
    s3.requests.clear()
    s3.bytes_per_s = None
    folder = files().locate(URI, None, silent).path
    assert len([path for path, _ in s3.ranges if path == BIG]) == 5 - num_noted
    assert (folder / "model.safetensors").read_bytes() == s3.objects[BIG]


def test_content_that_has_another_checksum_is_never_used(s3, files):
    s3.wrong_checksums = frozenset({BIG})
    with pytest.raises(ReplicaFailed, match="crc64nvme"):
        files().locate(URI, None, silent)
    s3.wrong_checksums = frozenset()
    assert (files().locate(URI, None, silent).path / "model.safetensors").read_bytes() == s3.objects[BIG]


def test_a_model_that_is_overwritten_is_another_model(s3, files):
    before = files().locate(URI, None, silent)
    s3.objects[BIG] = b"other"
    after = files().locate(URI, None, silent)
    assert after.revision != before.revision
    assert (before.path / "model.safetensors").read_bytes() != (after.path / "model.safetensors").read_bytes()


def test_ranks_refuse_a_version_that_their_leader_has_not_seen(s3, files, tmp_path):
    located = files().locate(URI, None, silent)
    s3.objects[BIG] = b"other"
    elsewhere = files(cache=str(tmp_path / "other-machine"))
    with pytest.raises(CheckpointError, match="overwritten"):
        elsewhere.locate(URI, located.revision, silent)


def test_the_command_prints_the_path(s3, tmp_path, capsys):
    assert main(["fetch", URI, "--cache", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert (Path(said.out.strip()) / "model.safetensors").exists()
    assert "100 %" in said.err
    assert main(["fetch", "s3://models/nothing", "--cache", str(tmp_path)]) == 2
    assert "nothing is stored there" in capsys.readouterr().err


def test_progress_reaches_its_total(s3, files):
    heard = []
    files().locate(URI, None, lambda *report: heard.append(report))
    assert heard[-1][:2] == (1255002, 1255002)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://models/nothing", "nothing is stored there"),
        ("s3://models/nothing.gguf", "does not exist"),
        ("s3://no-bucket/llama", "does not exist"),
        ("s3://secret/llama", "role of this machine needs s3:ListBucket"),
        ("s3://models/ggufs", "name the one to serve"),
        ("s3://models", "not s3://BUCKET/FOLDER"),
        ("s3://Models_/x", "not s3://BUCKET/FOLDER"),
    ],
)
def test_what_cannot_be_fetched_says_why_and_what_to_do(s3, files, uri, words):
    s3.denied = frozenset({"secret"})
    s3.objects["models/ggufs/a.gguf"] = b"GGUF"
    with pytest.raises(CheckpointError, match=words):
        files().locate(uri, None, silent)


def test_no_credentials_is_said_in_words(s3, files, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="give this machine a role"):
        files().locate(URI, None, silent)


def test_keys_that_lead_out_of_the_folder_are_not_fetched(s3, files):
    s3.objects["models/llama/../../evil.json"] = b"{}"
    s3.objects["models/llama//twice.json"] = b"{}"
    folder = files().locate(URI, None, silent).path
    assert {path.name for path in folder.rglob("*")} == {"config.json", "model.safetensors", "empty.json"}
