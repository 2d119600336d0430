import os
import shutil

import pytest

from cluster.weights.cache import WeightsCache
from core.errors import CheckpointError

MODEL_BYTES = 1_255_002


def silent(done, total, name):
    pass


def add_model(s3, name):
    for file in ("config.json", "model.safetensors"):
        s3.objects[f"models/{name}/{file}"] = s3.objects[f"models/llama/{file}"]


def fetch(files, name, **changes):
    """Have a model as a process that has ended since."""
    process = files(**changes)
    located = process.locate(f"s3://models/{name}", None, silent)
    process.close()
    return located


def age(weights, located, seconds):
    lock = weights.folder / "locks" / f"{located.revision}.use"
    os.utime(lock, (lock.stat().st_mtime - seconds, lock.stat().st_mtime - seconds))


def test_the_model_unused_for_longest_makes_room(s3, files, weights):
    for name in ("a", "b", "c"):
        add_model(s3, name)
    old, new = fetch(files, "a"), fetch(files, "b")
    age(weights, old, 100)
    third = fetch(files, "c", max_cache=3 * MODEL_BYTES)
    assert not old.path.exists()
    assert new.path.exists()
    assert third.path.exists()


def test_a_model_in_use_is_never_evicted(s3, files, weights):
    add_model(s3, "b")
    user = files()
    used = user.locate("s3://models/llama", None, silent)
    age(weights, used, 100)
    with pytest.raises(CheckpointError, match=r"needs \d+ bytes more, and there is room for"):
        fetch(files, "b", max_cache=2 * MODEL_BYTES)
    assert (used.path / "model.safetensors").exists()
    user.close()
    fetch(files, "b", max_cache=2 * MODEL_BYTES)
    assert not used.path.exists()


def test_a_disk_without_room_is_named_before_anything_is_fetched(s3, files, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=65 * 2**20))
    s3.objects["models/llama/model.safetensors"] = bytes(2 * 2**20)
    with pytest.raises(CheckpointError, match="needs 2097154 bytes more, and there is room for 1048576"):
        files().locate("s3://models/llama", None, silent)
    assert s3.ranges == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="weights cannot be kept there"):
        WeightsCache(tmp_path / "file" / "cache")


def test_an_evicted_model_is_fetched_again(s3, files, weights):
    located = fetch(files, "llama")
    WeightsCache(weights.folder)._evict(located.revision)
    assert not located.path.exists()
    assert fetch(files, "llama") == located
    assert (located.path / "model.safetensors").exists()
