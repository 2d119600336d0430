"""Red when text depends on how tokens were grouped, a stop string slips through, or half characters appear."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text import TextStream
from tests.support.byte_tokenizer import EOS, ByteTokenizer

TOKENIZER = ByteTokenizer()


def stream(stop=(), **options) -> TextStream:
    return TextStream(TOKENIZER, [], stop, **options)


def run(text_stream: TextStream, groups: list[list[int]]) -> str:
    """What a client sees: pushes until stopped, then the rest."""
    visible = ""
    for group in groups:
        delta = text_stream.push(group)
        visible += delta.text
        if delta.is_stopped:
            break
    return visible + text_stream.finish()


def expected(text: str, stop: list[str], include_stop: bool) -> str:
    """The definition, on the whole text: the stop string that ends first; then the one that starts first."""
    matches = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    if not matches:
        return text
    end, start = min(matches)
    return text[: end if include_stop else start]


ALPHABET = "ab é€𝄞"


@given(st.data())
def test_text_is_independent_of_how_tokens_are_grouped(data):
    text = data.draw(st.text(ALPHABET, max_size=40))
    stop = data.draw(st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4))
    include_stop = data.draw(st.booleans())
    tokens = TOKENIZER.encode(text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=10)))
    groups = [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]

    text_stream = stream(stop, include_stop=include_stop)

    assert run(text_stream, groups) == expected(text, stop, include_stop)
    visible_by_token = stream(stop, include_stop=include_stop)
    assert run(visible_by_token, [[token] for token in tokens]) == expected(text, stop, include_stop)
    assert visible_by_token.num_tokens == text_stream.num_tokens
    assert visible_by_token.stop_string == text_stream.stop_string


@given(st.lists(st.integers(0, 255), max_size=60))
def test_broken_utf8_is_never_shown_in_parts(tokens):
    text_stream = stream()
    deltas = [text_stream.push([token]).text for token in tokens]
    assert "".join(deltas) + text_stream.finish() == bytes(tokens).decode("utf-8", "replace")


def test_an_unfinished_character_is_held_back_and_released_at_the_end():
    text_stream = stream()
    assert text_stream.push(list("é".encode())[:1]).text == ""
    assert text_stream.finish() == "\ufffd"


def test_a_possible_stop_prefix_is_held_back_until_it_is_ruled_out():
    text_stream = stream(["</end>"])
    assert text_stream.push(TOKENIZER.encode("a</en")).text == "a"
    assert text_stream.push(TOKENIZER.encode("x")).text == "</enx"


def test_a_held_prefix_is_released_when_the_request_ends():
    text_stream = stream(["</end>"])
    text_stream.push(TOKENIZER.encode("a</en"))
    assert text_stream.finish() == "</en"
    assert text_stream.stop_string is None


def test_tokens_are_counted_up_to_the_one_that_completed_the_stop_string():
    text_stream = stream(["cd"])
    delta = text_stream.push(TOKENIZER.encode("abcdefgh"))
    assert delta == ("ab", True)
    assert (text_stream.num_tokens, text_stream.stop_string) == (4, "cd")
    assert text_stream.push(TOKENIZER.encode("more")) == ("", True)
    assert text_stream.num_tokens == 4


def test_the_stop_string_that_ends_first_wins():
    assert run(stream(["abcd", "b"]), [TOKENIZER.encode("xabcd")]) == "xa"
    assert run(stream(["bc", "abc"]), [TOKENIZER.encode("xabc")]) == "x"


def test_include_stop_keeps_the_match_and_nothing_after_it():
    assert run(stream(["cd"], include_stop=True), [TOKENIZER.encode("abcdef")]) == "abcd"


def test_stop_strings_do_not_match_before_min_tokens():
    text_stream = stream(["a"], min_tokens=3)
    assert run(text_stream, [TOKENIZER.encode("aabXaY")]) == "aabX"
    assert text_stream.num_tokens == 5


def test_special_tokens_are_skipped_unless_asked_for():
    tokens = [*TOKENIZER.encode("hi"), EOS]
    assert run(stream(), [tokens]) == "hi"
    assert run(stream(skip_special_tokens=False), [tokens]) == "hi<eos>"


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_num_characters_counts_what_was_decoded_even_if_held_back(stop):
    text_stream = stream(stop)
    text_stream.push(TOKENIZER.encode("abz"))
    assert text_stream.num_characters == 3
