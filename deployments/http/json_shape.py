"""The shape of a JSON text, checked before any of it becomes objects: how deep, how many parts, which keys twice.

Parsers differ in what they make of a duplicate key, and deep or crowded texts cost them far more than their length
says. What is looked at here is mostly what lies between the strings, found at the speed of `bytes.split`. The grammar
is left to the parser.
"""

import re

import msgspec

from deployments.http.errors import DuplicateKey, MalformedJson

MAX_DEPTH = 64
MAX_STRINGS = 1 << 15
MAX_BRACKETS = 1 << 16
"""The richest requests that can be served, long chats with many tools, have a third of these."""
MAX_DIGITS = 19
"""What a 64-bit integer has; longer ones are mistakes or attacks."""

_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_INTEGER = re.compile(rb"(?<![0-9.eE+])(?<![eE]-)[0-9]{%d,}(?![0-9.eE])" % (MAX_DIGITS + 1))
# A byte that JSON strings cannot hold stands for an escaped backslash and an escaped quote.
_BACKSLASH, _QUOTE = b"\x00\x01", b"\x00\x02"


def check_shape(body: bytes) -> None:
    """Raise MalformedJson or DuplicateKey if the shape of `body` is refused; JSON or not, it takes a few ms at most."""
    parts = body.replace(b"\\\\", _BACKSLASH).replace(b'\\"', _QUOTE).split(b'"')
    if len(parts) > 2 * MAX_STRINGS:
        raise MalformedJson(f"the body has more than {MAX_STRINGS} strings; send less")
    between = parts[::2]
    _check_digits(b'"'.join(between))
    brackets = [part.translate(None, _NOT_BRACKETS) for part in between]
    if sum(map(len, brackets)) > MAX_BRACKETS:
        raise MalformedJson(f"the body has more than {MAX_BRACKETS} brackets; send less")
    _check_nesting(parts, brackets)


def _check_digits(outside: bytes) -> None:
    # A substring is found much faster than a pattern, and hardly any body has one.
    if b"0" * (MAX_DIGITS + 1) in outside.translate(_DIGITS_AS_ZEROS) and _LONG_INTEGER.search(outside):
        raise MalformedJson(f"the body has an integer of more than {MAX_DIGITS} digits; send a smaller one")


def _check_nesting(parts: list[bytes], brackets: list[bytes]) -> None:
    """`parts`: between strings and strings in turn; `brackets`: those of each part between strings."""
    open_objects: list[set[bytes] | None] = []
    for index, found in enumerate(brackets):
        for bracket in found:
            if bracket in b"{[":
                open_objects.append(set() if bracket == ord("{") else None)
                if len(open_objects) > MAX_DEPTH:
                    raise MalformedJson(f"the body is nested more than {MAX_DEPTH} levels deep; send it flatter")
            elif open_objects:
                open_objects.pop()
        after = 2 * index + 2
        if after < len(parts) and parts[after].lstrip()[:1] == b":" and open_objects:
            _note_key(parts[after - 1], open_objects[-1])


def _note_key(spelled: bytes, keys: set[bytes] | None) -> None:
    if keys is None:
        return  # a key in an array: the parser will say so
    key = _unescaped(spelled) if b"\\" in spelled or b"\x00" in spelled else spelled
    if key in keys:
        raise DuplicateKey("the body has an object with the same key twice; keep one of them")
    keys.add(key)


def _unescaped(spelled: bytes) -> bytes:
    """Return the key as other spellings of it are returned, or as it is if it cannot be read."""
    text = spelled.replace(_BACKSLASH, b"\\\\").replace(_QUOTE, b'\\"')
    try:
        return msgspec.json.decode(b'"' + text + b'"', type=str).encode()
    except (msgspec.DecodeError, UnicodeError):
        return spelled
