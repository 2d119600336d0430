"""Models come from a hub: the real hub library, in a process of its own, against a hub on 127.0.0.1."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkpoints import make_checkpoint
from tests.support.loopback_hub import COMMIT, LoopbackHub

pytestmark = pytest.mark.integration

_CHILD = """
import json, sys
from core.errors import EaglerayError
from parallel.checkpoint import source
calls = json.loads(sys.argv[1])
for name, arguments in calls:
    try:
        print(json.dumps(["path", str(getattr(source, name)(*arguments))]))
    except EaglerayError as error:
        print(json.dumps([error.code, error.message]))
print(json.dumps(["torch", "torch" in sys.modules]))
"""

Call = tuple[str, list[str | None]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = make_checkpoint(
        "LlamaForCausalLM", tmp_path_factory.mktemp("model"), max_shard_size="150KB", with_tokenizer=True
    )
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len([name for name in found if name.endswith(".safetensors")]) > 1
    return found | {
        "pytorch_model.bin": b"pickle",
        "original/model.safetensors": b"other layout",
        "README.md": b"hello",
    }


def ask(calls: list[Call], endpoint: str, home: Path, **environment: str) -> list[tuple[str, str]]:
    """Run the calls in a new process, because the hub library reads its settings when imported."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(calls)], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *answers, torch = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert torch == ("torch", False)
    return answers


def checkpoint(source: str, revision: str | None = None) -> Call:
    return ("resolve_checkpoint", [source, revision])


def test_sharded_model_comes_from_the_hub_without_pickles_and_opens(files: dict[str, bytes], tmp_path: Path) -> None:
    from parallel.checkpoint.reader import open_checkpoint

    with LoopbackHub({"org/tiny": files}) as hub:
        [(kind, found)] = ask([checkpoint("org/tiny")], hub.endpoint, tmp_path)
        assert kind == "path", found
        assert found.endswith(COMMIT)
        assert open_checkpoint(Path(found)).read("lm_head.weight", slice(0, 3)).shape == (3, 64)
        wanted = {name for name in files if name.endswith((".safetensors", ".json")) and "/" not in name}
        assert hub.downloaded == wanted


def test_downloaded_model_is_found_again_offline_and_when_the_hub_is_gone(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    with LoopbackHub({"org/tiny": files}) as hub:
        [first] = ask([checkpoint("org/tiny")], hub.endpoint, tmp_path)
        endpoint = hub.endpoint
    assert ask([checkpoint("org/tiny")], endpoint, tmp_path) == [first]
    assert ask([checkpoint("org/tiny")], endpoint, tmp_path, HF_HUB_OFFLINE="1") == [first]


def test_tokenizer_comes_without_weights(files: dict[str, bytes], tmp_path: Path) -> None:
    with LoopbackHub({"org/tiny": files}) as hub:
        [(kind, found)] = ask([("resolve_tokenizer", ["org/tiny", None])], hub.endpoint, tmp_path)
        assert kind == "path", found
        assert (Path(found) / "tokenizer.json").exists()
        assert not [name for name in hub.downloaded if name.endswith(".safetensors")]


def test_one_gguf_file_of_a_repository_is_downloaded_alone(tmp_path: Path) -> None:
    repo = {"model-Q4_0.gguf": b"GGUF four", "model-Q8_0.gguf": b"GGUF eight"}
    with LoopbackHub({"org/quantised": repo}) as hub:
        calls = [checkpoint("org/quantised:model-Q8_0.gguf"), checkpoint("org/quantised")]
        (kind, found), refused = ask(calls, hub.endpoint, tmp_path)
        assert (kind, Path(found).read_bytes()) == ("path", b"GGUF eight")
        assert hub.downloaded == {"model-Q8_0.gguf"}
        assert refused[0] == "checkpoint_error" and "org/quantised:FILE.gguf" in refused[1]


def test_every_refusal_of_the_hub_says_what_to_do(files: dict[str, bytes], tmp_path: Path) -> None:
    calls = [
        checkpoint("org/absent"),
        checkpoint("org/gated"),
        checkpoint("org/tiny", "v9"),
        checkpoint("org/tiny:absent.gguf"),
    ]
    with LoopbackHub({"org/tiny": files, "org/gated": files}, gated=frozenset({"org/gated"})) as hub:
        answers = ask(calls, hub.endpoint, tmp_path)
        accepted = ask([checkpoint("org/gated")], hub.endpoint, tmp_path, HF_TOKEN="hf_good")
    assert {kind for kind, _ in answers} == {"checkpoint_error"}
    wanted = [("org/absent", "no such repository"), ("org/gated", "HF_TOKEN"), ("'v9'", "revision"), ("absent.gguf",)]
    for (_, message), words in zip(answers, wanted, strict=True):
        assert all(word in message for word in words), message
    assert accepted[0][0] == "path"


def test_unreachable_hub_is_a_clear_error(tmp_path: Path) -> None:
    with LoopbackHub({}) as hub:
        endpoint = hub.endpoint
    for environment, words in (({}, endpoint), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE")):
        [(kind, message)] = ask([checkpoint("org/tiny")], endpoint, tmp_path, **environment)
        assert kind == "checkpoint_error"
        assert words in message and "give a folder" in message
