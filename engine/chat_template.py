"""Chat templates: jinja2 programs that come with a model, run in a sandbox on plain data.

The environment is transformers' (`utils/chat_template_utils.py`), so that a template renders here what its author saw:
trimmed blocks, loop controls, `{% generation %}`, `raise_exception`, `strftime_now`, and a `tojson` that leaves HTML
characters alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.errors import CheckpointError, InvalidRequest

MAX_TEMPLATE_CHARACTERS = 1_000_000
"""The longest known templates have 30 thousand."""
MAX_PROMPT_CHARACTERS = 32_000_000
"""Stops a template that writes without end; no context holds as much."""

_RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a template raises on data it was not written for."""


class ChatTemplate:
    """One compiled template. Safe for several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str) -> None:
        """Compile. `special_tokens` are variables such as bos_token. Raises CheckpointError naming `where`."""
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise CheckpointError(f"{where} has {len(source)} characters; at most {MAX_TEMPLATE_CHARACTERS} are read")
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise CheckpointError(f"{where} does not compile ({error}); correct the file") from None
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Return the prompt. Raises InvalidRequest with the template's own words if it rejects the messages."""
        values: dict[str, object] = {**self._special_tokens, **(variables or {})}
        values |= {"messages": messages, "tools": tools or None, "documents": None}
        values["add_generation_prompt"] = add_generation_prompt
        pieces: list[str] = []
        num_characters = 0
        try:
            for piece in self._template.generate(values):
                num_characters += len(piece)
                if num_characters > MAX_PROMPT_CHARACTERS:
                    raise InvalidRequest("the chat template's prompt is too long; shorten messages", param="messages")
                pieces.append(piece)
        except _RENDER_ERRORS as error:
            raise InvalidRequest(
                f"the model's chat template rejects these messages: {error}; change roles or contents", param="messages"
            ) from None
        return "".join(pieces)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what a model wrote, for training; here it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """A `namespace` that refuses names by which a template could reach Python's internals, as transformers' does."""

    def __init__(*args: object, **values: object) -> None:
        self, *pairs = args
        assert isinstance(self, _Namespace)
        checked = dict(*pairs, **values)  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name in checked:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, checked)

    def __setitem__(self, name: str, value: object) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r} starts with an underscore")


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Callable[..., object]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _Namespace,
    }
    environment.globals.update(functions)
    return environment


_ENVIRONMENT = _environment()
