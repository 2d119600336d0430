"""A tokenizer and its chat templates are found in a model folder, whichever way the model's author wrote them."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import CheckpointError, InvalidRequest, UnsupportedModel
from engine.tokenizer import Tokenizer
from tests.support.checkpoints import write_byte_tokenizer

USER = [{"role": "user", "content": "hi"}]


def change_settings(folder: Path, **values: Any) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_byte_tokenizer(tmp_path)


def test_text_goes_to_ids_and_back(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    for text in ("", "Hello, 你好 👩‍👩‍👧\n\t", "\x00\x7f", "<|user|>"):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    assert tokenizer.vocab_size == 260


def test_chat_is_the_rendered_template_with_its_special_tokens_as_single_ids(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.render_chat(USER) == "<|user|>hi<|end|><|assistant|>"
    ids = tokenizer.chat(USER)
    assert [tokenizer.id_to_token(i) for i in ids] == ["<|user|>", "h", "i", "<|end|>", "<|assistant|>"]
    assert tokenizer.chat(USER, add_generation_prompt=False) == ids[:-1]


def test_special_tokens_are_found_as_text_and_as_objects(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.bos_token_id == tokenizer.token_to_id("<|begin|>") == 256
    assert tokenizer.eos_token_ids == (257,)


def test_end_tokens_of_the_models_configuration_count(folder: Path) -> None:
    (folder / "config.json").write_text('{"eos_token_id": 258}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [259, 257]}')
    assert Tokenizer.load(folder).eos_token_ids == (257, 258, 259)


def test_template_file_wins_over_the_settings(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("from file")
    assert Tokenizer.load(folder).render_chat(USER) == "from file"


def test_template_for_tools_is_used_when_tools_are_given(folder: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].name }}"}]
    tokenizer = Tokenizer.load(change_settings(folder, chat_template=named))
    assert tokenizer.render_chat(USER) == "plain"
    assert tokenizer.render_chat(USER, tools=[{"name": "f"}]) == "f"


def test_model_without_a_template_sends_the_caller_to_completions(folder: Path) -> None:
    tokenizer = Tokenizer.load(write_byte_tokenizer(folder, chat_template=None))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        tokenizer.chat(USER)


def test_truncation_and_padding_that_a_file_asks_for_do_not_happen(folder: Path) -> None:
    from tokenizers import Tokenizer as LibraryTokenizer

    library = LibraryTokenizer.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(3)
    library.enable_padding(length=64)
    library.save(str(folder / "tokenizer.json"))
    assert len(Tokenizer.load(folder).encode("hello")) == 5


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff"])
def test_half_of_a_surrogate_pair_is_an_invalid_request(folder: Path, text: str) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        Tokenizer.load(folder).encode(text)
    with pytest.raises(InvalidRequest, match="surrogate"):
        Tokenizer.load(folder).chat([{"role": "user", "content": text}])


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", "{", "tokenizer.json: not a tokenizer"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json"),
        ("tokenizer_config.json", '{"chat_template": 3}', "tokenizer_config.json: chat_template=3"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}', "chat_template"),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "chat template 'default' does not compile"),
        ("tokenizer_config.json", '{"eos_token": 2}', "eos_token=2"),
        ("generation_config.json", '{"eos_token_id": "x"}', "generation_config.json: eos_token_id='x'"),
    ],
)
def test_damaged_file_is_refused_by_name(folder: Path, file: str, content: str, words: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        Tokenizer.load(folder)


def test_folder_without_any_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_code_that_comes_with_a_tokenizer_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "tokenization_evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}, "trust_remote_code": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModel, match="auto_map"):
        Tokenizer.load(tmp_path)
    assert not (tmp_path / "canary").exists()
