"""Text of users is text, even where it spells a control token.

A tokenizer finds control tokens (`<|im_start|>`, `<s>`) in a chat's prompt wherever they are spelled, so a user who
spells them could end his own turn and speak as the system. Which of them the template wrote is known from a mark:
before a template sees a user's text, a character that is in no text is put inside every control token it spells, and
behind an end that is the beginning of one. What is spelled without a mark afterwards is the template's. For the
tokenizer it is then replaced by an alias, the marks are taken out, and a second tokenizer, over the same vocabulary,
knows control tokens by their aliases only.
"""

import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tokenizers import AddedToken
from tokenizers import Tokenizer as LibraryTokenizer

from core.errors import InvalidRequest

_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Unicode promises never to give them a meaning; the first that is in no text is taken."""


PlainData = Mapping[str, object]


class MarkedChat(NamedTuple):
    """What a template may see of a chat, and the mark in it."""

    mark: str
    messages: list[PlainData]
    tools: list[PlainData]
    variables: PlainData


class PlainText:
    """Tokenises with one vocabulary. Every method may be called from several threads."""

    def __init__(self, library: LibraryTokenizer, control_ids: Collection[int]) -> None:
        """`control_ids`: tokens that no user's text may become; those that the library did not add are ignored."""
        added = library.get_added_tokens_decoder()
        self._control = {token.content: token_id for token_id, token in added.items() if token_id in control_ids}
        nonce = secrets.randbits(64)
        self._aliases = {text: f"\ufdfe{nonce}.{token_id}\ufdff" for text, token_id in self._control.items()}
        self._spelled = re.compile(_pattern(self._control))
        self._beginnings = {text[:length] for text in self._control for length in range(1, len(text))}
        self._first_characters = {text[0] for text in self._control if text}
        self._max_beginning = max(map(len, self._beginnings), default=0)
        self._library = _same_vocabulary(library)
        self._ids = self._add(added)
        self._start_ids, self._end_ids = _surroundings(library)

    def has_control(self, text: str) -> bool:
        """Whether `text` spells a control token."""
        return self._spelled.search(text) is not None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a user's text, with what the tokenizer puts around texts if that is wanted.

        Raises InvalidRequest where the vocabulary has no other way to write a control token's name than the token.
        """
        ids = self._encode(text)
        return [*self._start_ids, *ids, *self._end_ids] if add_special_tokens else ids

    def marked(self, messages: Sequence[PlainData], tools: Sequence[PlainData], variables: PlainData) -> MarkedChat:
        """Return copies in which every text is marked. Raises InvalidRequest if no mark is left to use."""
        texts = list(_texts([*messages, *tools, variables]))
        mark = next((mark for mark in _MARKS if not any(mark in text for text in texts)), None)
        if mark is None:
            raise InvalidRequest("the text holds every one of the noncharacters U+FDD0 to U+FDEF; leave one out")
        return MarkedChat(
            mark,
            [self._copy_of(message, mark) for message in messages],
            [self._copy_of(tool, mark) for tool in tools],
            self._copy_of(variables, mark),
        )

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Return the token ids of a prompt, in which only control tokens without a mark are control tokens."""
        return self._encode(self._spelled.sub(self._alias_of, text).replace(mark, ""))

    def _alias_of(self, match: re.Match[str]) -> str:
        return self._aliases[match[0]]

    def _encode(self, text: str) -> list[int]:
        found = self._library.encode(text, add_special_tokens=False).ids
        ids = [self._ids.get(token_id, token_id) for token_id in found]
        # Vocabularies that are no byte-pair encoding may hold a control token's name as a word like any other.
        if any(token_id not in self._ids and token_id in self._control.values() for token_id in set(found)):
            raise InvalidRequest("the text spells a control token of this model, which it cannot read as text")
        return ids

    def _copy_of(self, data: PlainData, mark: str) -> PlainData:
        return {self._mark(key, mark): self._copy(item, mark) for key, item in data.items()}

    def _copy(self, value: object, mark: str) -> object:
        match value:
            case str():
                return self._mark(value, mark)
            case Mapping():
                return self._copy_of(value, mark)
            case list() | tuple():
                return [self._copy(item, mark) for item in value]
            case _:
                return value

    def _mark(self, text: str, mark: str) -> str:
        parts: list[str] = []
        done = 0
        # From each one on, the search begins again one character later, for names may overlap.
        while match := self._spelled.search(text, done):
            parts.append(text[done : match.start() + 1])
            done = match.start() + 1
        parts.append(text[done:])
        tail = text[-self._max_beginning :] if self._max_beginning else ""
        if not self._first_characters.isdisjoint(tail) and any(
            tail[start:] in self._beginnings for start in range(len(tail))
        ):
            parts.append("")
        return mark.join(parts)

    def _add(self, added: Mapping[int, AddedToken]) -> dict[int, int]:
        """Make the second tokenizer know every added token, control tokens by alias; return its ids' real ones."""
        ids: dict[int, int] = {}
        for token_id, token in sorted(added.items()):
            content = self._aliases.get(token.content, token.content)
            token = AddedToken(
                content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=token.special,
            )
            (self._library.add_special_tokens if token.special else self._library.add_tokens)([token])
            own_id = self._library.token_to_id(content)
            assert own_id is not None, "it was just added"
            ids[own_id] = token_id
        return ids


def _same_vocabulary(library: LibraryTokenizer) -> LibraryTokenizer:
    """Return a tokenizer that shares the model, not a copy of it, and knows no added tokens."""
    other = LibraryTokenizer(library.model)
    if library.normalizer is not None:
        other.normalizer = library.normalizer
    if library.pre_tokenizer is not None:
        other.pre_tokenizer = library.pre_tokenizer
    return other


def _surroundings(library: LibraryTokenizer) -> tuple[list[int], list[int]]:
    """Return the tokens that the library puts before and after every text."""
    bare, whole = (library.encode("a", add_special_tokens=wants).ids for wants in (False, True))
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    if not starts:
        return [], []
    return whole[: starts[0]], whole[starts[0] + len(bare) :]


def _texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for key, item in value.items():
                yield from _texts(key)
                yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)


class _Trie(dict[str, "_Trie"]):
    """Words by their characters; the key "" says that a word ends here."""

    def add(self, word: str) -> None:
        node = self
        for character in word:
            node = node.setdefault(character, _Trie())
        node[""] = _Trie()

    def pattern(self) -> str:
        """Return a pattern that takes the longest word."""
        ways = [re.escape(character) + child.pattern() for character, child in sorted(self.items()) if character]
        if not ways:
            return ""
        either = f"(?:{'|'.join(ways)})" if len(ways) > 1 or "" in self else ways[0]
        return f"{either}?" if "" in self else either


def _pattern(words: Iterable[str]) -> str:
    """Return a pattern for any of `words`, the longest first, that costs the same for one and for a thousand."""
    trie = _Trie()
    for word in words:
        trie.add(word)
    return trie.pattern() or "(?!)"
