"""Token ids to text one token at a time, exact at the byte level.

Each token stands for some bytes, whatever its neighbours; only the text's very start is special (SentencePiece drops
the space it puts in front of the first word). So a stream needs a table of bytes and an incremental UTF-8 decoder, not
repeated decoding of a growing window: a step costs under a microsecond, and no text is ever taken back.

For byte-level BPE this equals the `tokenizers` library on any ids. For SentencePiece with byte fallback it equals it
wherever the bytes are valid UTF-8; of an invalid run the library replaces every byte, valid characters included, which
a stream could only match by holding back all text until the run ends.
"""

import codecs
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer as LibraryTokenizer

from core.errors import UnsupportedModel

_MAX_CHARACTER_BYTES = 4
"""Of a UTF-8 character; so a prompt's last 4 tokens decide which bytes are pending at its end."""
_MAX_TOKEN_ID = 2**32 - 1
"""The library's ids are of 32 bits."""
_NUM_CONTEXT_TOKENS = 8
"""Prompt tokens looked at to see whether the output continues some text."""


class TextStart(NamedTuple):
    """What is special about the first token that makes text."""

    num_stripped: int = 0
    """Leading spaces that are dropped."""
    drops_all_in_token: bool = False
    """All spaces of the first token are dropped (Metaspace), not `num_stripped` of the text."""


class TokenBytes:
    """The bytes of every token of one vocabulary; filled as tokens are met. Safe for several threads."""

    def __init__(self, tokenizer: LibraryTokenizer) -> None:
        """Raises UnsupportedModel for a decoder that is neither byte-level nor SentencePiece's."""
        self._tokenizer = tokenizer
        self._special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._to_bytes, self.start = _read_decoder(tokenizer)
        self._known: dict[int, bytes] = {}
        self.whole_texts: tuple[dict[int, str], dict[int, str]] = ({}, {})
        """Text of tokens that are whole characters, with and without special tokens; filled by decoders."""

    def of(self, token_id: int) -> bytes:
        """Return the bytes of a token, as anywhere but at the start of a text; none for an id without a token."""
        known = self._known.get(token_id)
        if known is not None:
            return known
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id <= _MAX_TOKEN_ID else None
        if token is None:
            return b""
        self._known[token_id] = self._to_bytes(token)
        return self._known[token_id]

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is a control token, which is not part of the text."""
        return token_id in self._special


class TokenDecoder:
    """The text of one stream of tokens."""

    def __init__(self, table: TokenBytes, prompt_ids: Sequence[int], skip_special_tokens: bool) -> None:
        """Start after `prompt_ids`, of which only the last few are looked at."""
        self._table = table
        self._skips_special = skip_special_tokens
        self._whole_texts = table.whole_texts[skip_special_tokens]
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_at_start = True
        self._num_to_strip = table.start.num_stripped
        self._prime(prompt_ids)
        self._is_between_characters = self._has_nothing_pending()

    def step(self, token_id: int) -> str:
        """Return the text that `token_id` completes, perhaps none."""
        # Nearly every token: it begins and ends between two characters, and has been met before.
        if self._is_between_characters:
            text = self._whole_texts.get(token_id)
            if text is not None:
                return text
        return self._decode(token_id)

    def flush(self) -> str:
        """Return what is left, an unfinished character as U+FFFD."""
        return self._utf8.decode(b"", final=True)

    def _decode(self, token_id: int) -> str:
        if self._skips_special and self._table.is_special(token_id):
            return ""
        began_between_characters = self._is_between_characters
        piece = self._table.of(token_id)
        text = self._utf8.decode(self._without_start(piece) if self._is_at_start else piece)
        self._is_between_characters = self._has_nothing_pending()
        if began_between_characters and self._is_between_characters:
            self._whole_texts[token_id] = text
        return text

    def _has_nothing_pending(self) -> bool:
        """Whether the next token's text depends on that token alone."""
        return not self._is_at_start and not self._utf8.getstate()[0]

    def _prime(self, prompt_ids: Sequence[int]) -> None:
        context = [
            i for i in prompt_ids[-_NUM_CONTEXT_TOKENS:] if not (self._skips_special and self._table.is_special(i))
        ]
        self._is_at_start = not any(map(self._table.of, context))
        for token_id in context[-_MAX_CHARACTER_BYTES:]:
            self._utf8.decode(self._table.of(token_id))

    def _without_start(self, piece: bytes) -> bytes:
        """Return `piece` without the spaces that do not belong to a text's start."""
        if self._table.start.drops_all_in_token:
            # No bytes, no token: the first one is still to come.
            self._is_at_start = not piece
            return piece.replace(b" ", b"")
        while self._num_to_strip and piece.startswith(b" "):
            piece = piece[1:]
            self._num_to_strip -= 1
        # A token of nothing but dropped spaces leaves the start for the next one.
        self._is_at_start = not piece and self._num_to_strip > 0
        return piece


def _read_decoder(tokenizer: LibraryTokenizer) -> tuple[Callable[[str], bytes], TextStart]:
    # The library keeps a decoder's settings to itself but for its pickled state, which is JSON.
    state = b'{"type": "none"}' if tokenizer.decoder is None else tokenizer.decoder.__getstate__()
    settings = json.loads(state)
    steps: list[dict[str, object]] = settings.get("decoders", [settings])
    match steps:
        case [{"type": "ByteLevel"}]:
            return _byte_level_bytes, TextStart()
        case [{"type": "Metaspace", "replacement": str(mark), "prepend_scheme": scheme}]:
            return _Replaced([(mark, " ")], has_byte_fallback=False), TextStart(drops_all_in_token=scheme != "never")
        case _:
            return _sentencepiece(steps)


def _sentencepiece(steps: list[dict[str, object]]) -> tuple[Callable[[str], bytes], TextStart]:
    kinds = [str(step["type"]) for step in steps]
    replacements: list[tuple[str, str]] = []
    num_stripped = 0
    for number, step in enumerate(steps):
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replacements.append((old, new))
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": int(count), "stop": 0} if "Fuse" in kinds[:number]:
                num_stripped = count
            case _:
                raise UnsupportedModel(
                    f"tokenizer decoder {' + '.join(kinds)} is not implemented (at {step['type']}); supported:"
                    " ByteLevel, Metaspace, and SentencePiece's Replace + ByteFallback + Fuse + Strip"
                )
    return _Replaced(replacements, "ByteFallback" in kinds), TextStart(num_stripped)


class _Replaced:
    """SentencePiece's tokens: a mark stands for a space, `<0x0A>` for a byte."""

    def __init__(self, replacements: list[tuple[str, str]], has_byte_fallback: bool) -> None:
        self._replacements = replacements
        self._has_byte_fallback = has_byte_fallback

    def __call__(self, token: str) -> bytes:
        if self._has_byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE stands for (GPT-2, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        # An added token spelled in plain text.
        return token.encode()
