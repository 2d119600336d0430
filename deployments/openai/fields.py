"""Which top-level keys of a request mean something, which are ignored, and which are refused.

A key that is silently dropped costs its sender an afternoon, so an unknown one is refused by name. Ignored keys are
those of the OpenAI API that do not change which tokens are generated. Unsupported ones are accepted with the value
that asks for nothing.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from deployments.http.errors import UnknownParameter, UnsupportedParameter
from deployments.http.limits import decode

RawFields = dict[str, msgspec.Raw]
"""Top-level keys and their values, not parsed yet."""

IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)


class _Unsupported(NamedTuple):
    neutral: tuple[object, ...]
    """Values that ask for nothing, besides null."""
    why: str


_UNSUPPORTED: Mapping[str, _Unsupported] = {
    "audio": _Unsupported((), "this server generates text only"),
    "best_of": _Unsupported((1,), "use n"),
    "function_call": _Unsupported(("none",), "tool calling is not supported yet"),
    "functions": _Unsupported(([],), "tool calling is not supported yet"),
    "modalities": _Unsupported((["text"],), "this server generates text only"),
    "moderation": _Unsupported((), "moderate with a service of your own"),
    "response_format": _Unsupported(({"type": "text"},), "structured output is not supported yet"),
    "suffix": _Unsupported(("",), "insertion is not supported"),
    "tool_choice": _Unsupported(("none", "auto"), "tool calling is not supported yet"),
    "tools": _Unsupported(([],), "tool calling is not supported yet; leave tools out or send tool_choice='none'"),
    "web_search_options": _Unsupported((), "this server does not search the web"),
}

_ANY = msgspec.json.Decoder()
_FIELDS = msgspec.json.Decoder(RawFields)


def check_fields(body: bytes, meant: Collection[str]) -> None:
    """Check the top-level keys of a body whose endpoint reads the keys in `meant`.

    Raises MalformedJson, UnknownParameter naming the nearest known key, UnsupportedParameter.
    """
    fields = decode(_FIELDS, body)
    has_no_tools = "tool_choice" in fields and decode(_ANY, fields["tool_choice"]) == "none"
    for name, value in fields.items():
        if name in meant or name in IGNORED:
            continue
        if name not in _UNSUPPORTED:
            raise _unknown(name, meant)
        if not (name == "tools" and has_no_tools):
            _check_neutral(name, value)


def _check_neutral(name: str, raw: msgspec.Raw) -> None:
    value = decode(_ANY, raw)
    unsupported = _UNSUPPORTED[name]
    # Compared with its type: in Python True equals 1.
    if value is None or any(type(value) is type(neutral) and value == neutral for neutral in unsupported.neutral):
        return
    raise UnsupportedParameter(f"'{name}' is not supported: {unsupported.why}", param=name)


def _unknown(name: str, meant: Collection[str]) -> UnknownParameter:
    shown = name[:64]
    near = difflib.get_close_matches(shown, [*meant, *_UNSUPPORTED], n=1, cutoff=0.75)
    advice = f"did you mean '{near[0]}'?" if near else "leave it out"
    return UnknownParameter(f"unrecognized request argument supplied: '{shown}'; {advice}", param=shown)
