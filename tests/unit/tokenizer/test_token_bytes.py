"""Text decoded token by token is the text of the whole, for any ids, in both families of tokenizers."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as LibraryTokenizer

from core.errors import UnsupportedModel
from engine.token_bytes import TokenBytes, TokenDecoder
from engine.tokenizer import Tokenizer
from tests.support.checkpoints import write_byte_tokenizer

_BYTES = {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
_WORDS = ["▁", "▁Hello", "▁world", "Hello", "s", "▁▁▁", "é", "▁你", "好", ",", "a▁b", "<0xZZ>", "<0x1>"]
_SENTENCEPIECE_VOCAB = {"<unk>": 0, "<s>": 1, "</s>": 2} | _BYTES | {word: 259 + i for i, word in enumerate(_WORDS)}


def sentencepiece() -> LibraryTokenizer:
    tokenizer = LibraryTokenizer(models.BPE(_SENTENCEPIECE_VOCAB, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer


def metaspace() -> LibraryTokenizer:
    tokenizer = LibraryTokenizer(models.BPE({word: i for i, word in enumerate(_WORDS)}, []))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> LibraryTokenizer:
    folder = write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))
    tokenizer = LibraryTokenizer.from_file(str(folder / "tokenizer.json"))
    # Spelled in plain text, the first with characters outside of the byte alphabet.
    tokenizer.add_tokens([AddedToken("two words 你", normalized=False), AddedToken("Ġplain", normalized=False)])
    return tokenizer


def stream(tokenizer: LibraryTokenizer, ids: Sequence[int], prompt: Sequence[int] = (), skip: bool = True) -> str:
    decoder = TokenDecoder(TokenBytes(tokenizer), prompt, skip)
    return "".join(map(decoder.step, ids)) + decoder.flush()


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 270)), skip=st.booleans())
def test_byte_level_stream_equals_the_library_on_any_ids(
    byte_level: LibraryTokenizer, ids: list[int], skip: bool
) -> None:
    assert stream(byte_level, ids, skip=skip) == byte_level.decode(ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(text=st.text())
def test_byte_level_stream_shows_a_character_with_its_last_byte_and_never_a_part(
    byte_level: LibraryTokenizer, text: str
) -> None:
    decoder = TokenDecoder(TokenBytes(byte_level), (), True)
    shown, spelled = "", text.encode()
    for number, byte in enumerate(spelled):
        shown += decoder.step(_id_of_byte(byte_level, byte))
        assert shown == spelled[: number + 1].decode(errors="ignore")
    assert decoder.flush() == ""


def _id_of_byte(tokenizer: LibraryTokenizer, byte: int) -> int:
    table = TokenBytes(tokenizer)
    return next(token_id for token_id in range(256) if table.of(token_id) == bytes([byte]))


@settings(deadline=None)
@given(
    pieces=st.lists(st.one_of(st.sampled_from(_WORDS), st.characters(codec="utf-8"), st.just("</s>"))),
    skip=st.booleans(),
)
def test_sentencepiece_stream_equals_the_library_where_bytes_spell_characters(pieces: list[str], skip: bool) -> None:
    tokenizer = sentencepiece()
    ids: list[int] = []
    for piece in pieces:
        known = _SENTENCEPIECE_VOCAB.get(piece)
        ids += [known] if known is not None else [3 + byte for byte in piece.encode()]
    assert stream(tokenizer, ids, skip=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 300)))
def test_sentencepiece_stream_of_invalid_bytes_keeps_every_valid_character(ids: list[int]) -> None:
    text = stream(sentencepiece(), ids)
    table = TokenBytes(sentencepiece())
    spelled = b"".join(table.of(i) for i in ids if not table.is_special(i)).decode(errors="replace")
    assert text == spelled.removeprefix(" ")


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, len(_WORDS) + 5)))
def test_metaspace_stream_equals_the_library_on_any_ids(ids: list[int]) -> None:
    tokenizer = metaspace()
    assert stream(tokenizer, ids) == tokenizer.decode(ids)


@settings(deadline=None)
@given(prompt=st.lists(st.integers(0, 255), min_size=1), ids=st.lists(st.integers(0, 255)))
def test_last_few_prompt_tokens_do_as_well_as_the_whole_prompt(
    byte_level: LibraryTokenizer, prompt: list[int], ids: list[int]
) -> None:
    table = TokenBytes(byte_level)
    whole = TokenDecoder(table, (), True)
    for token_id in prompt:
        whole.step(token_id)
    assert stream(byte_level, ids, prompt) == "".join(map(whole.step, ids)) + whole.flush()


def test_first_word_keeps_its_space_after_a_prompt_and_loses_it_without() -> None:
    hello = [_SENTENCEPIECE_VOCAB["▁Hello"], _SENTENCEPIECE_VOCAB["▁world"]]
    assert stream(sentencepiece(), hello) == "Hello world"
    assert stream(sentencepiece(), hello, prompt=[_SENTENCEPIECE_VOCAB["Hello"]]) == " Hello world"
    # Control tokens are no text: the output still starts one.
    assert stream(sentencepiece(), hello, prompt=[1]) == "Hello world"
    assert stream(sentencepiece(), hello, prompt=[1] * 100_000) == "Hello world"


def test_character_that_begins_in_the_prompt_is_completed_by_the_output(byte_level: LibraryTokenizer) -> None:
    first, second, third = (_id_of_byte(byte_level, byte) for byte in "你".encode())
    a = _id_of_byte(byte_level, ord("a"))
    assert stream(byte_level, [third, a], prompt=[a] * 20 + [first, second]) == "你a"
    assert stream(byte_level, [a], prompt=[first, second]) == "\ufffda"


def test_unfinished_character_is_flushed_as_a_replacement(byte_level: LibraryTokenizer) -> None:
    decoder = TokenDecoder(TokenBytes(byte_level), (), True)
    assert [decoder.step(_id_of_byte(byte_level, byte)) for byte in "👩".encode()[:3]] == ["", "", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**31, 2**40])
def test_id_without_a_token_is_no_text(tmp_path: Path, token_id: int) -> None:
    tokenizer = Tokenizer.load(write_byte_tokenizer(tmp_path))
    assert tokenizer.token_bytes(token_id) == b""
    assert tokenizer.id_to_token(token_id) is None
    assert tokenizer.decode([token_id]) == ""


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.Sequence([decoders.Strip(" ", 1, 0)])])
def test_decoder_of_another_kind_is_refused_by_name(decoder: object) -> None:
    tokenizer = LibraryTokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        tokenizer.decoder = decoder
    with pytest.raises(UnsupportedModel, match="decoder .* is not implemented"):
        TokenBytes(tokenizer)
