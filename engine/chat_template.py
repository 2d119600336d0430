"""Chat templates: jinja2 programs that come with a model, run in a sandbox on plain data.

The environment is transformers' (`utils/chat_template_utils.py`), so that a template renders here what its author saw:
trimmed blocks, loop controls, `{% generation %}`, `raise_exception`, `strftime_now`, and a `tojson` that leaves HTML
characters alone. What it leaves out, and how it bounds what is left, is in template_sandbox.py.
"""

from collections.abc import Mapping, Sequence

import jinja2
from jinja2 import meta

from core.errors import CheckpointError, InvalidRequest
from engine.template_sandbox import (
    MISSING_FUNCTIONS,
    UNLIMITED,
    Budget,
    ChatEnvironment,
    Refusal,
    TooCostly,
    size_of,
    spending,
)

MAX_TEMPLATE_CHARACTERS = 1_000_000
"""The longest known templates have 30 thousand."""
MAX_OWN_CHARACTERS = 1_000_000
"""What a template may write besides the texts it is given."""
MAX_EXPANSION = 8
"""How many times as long a prompt may be as those texts."""
_MAX_WORDS = 300

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
_PROBE = [{"role": "user", "content": "Hello"}]


class ChatTemplate:
    """One compiled template. Safe for several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str) -> None:
        """Compile and try. `special_tokens` are variables such as bos_token. Raises CheckpointError naming `where`."""
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise CheckpointError(f"{where} has {len(source)} characters; at most {MAX_TEMPLATE_CHARACTERS} are read")
        try:
            names = meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
            self._template = _ENVIRONMENT.from_string(source)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise CheckpointError(f"{where} does not compile ({error}); correct the file") from None
        if missing := sorted(names & MISSING_FUNCTIONS):
            raise CheckpointError(f"{where} uses {', '.join(missing)}, which chat templates may not; correct the file")
        self._special_tokens = dict(special_tokens)
        self._try(where)

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
        try:
            return self._render(values)
        except Refusal as error:
            reason = str(error)[:_MAX_WORDS]
        except TooCostly as error:
            reason = str(error)
        except _RENDER_ERRORS as error:
            # Its text may hold some of a message, or an address of ours.
            reason = type(error).__name__
        raise InvalidRequest(
            f"the model's chat template rejects these messages: {reason}; change roles or contents", param="messages"
        )

    def _render(self, values: Mapping[str, object]) -> str:
        with spending(UNLIMITED):
            size = size_of(values)
        budget = Budget(MAX_OWN_CHARACTERS + MAX_EXPANSION * size)
        pieces: list[str] = []
        length = 0
        with spending(budget):
            for piece in self._template.generate(values):
                length += len(piece)
                budget.check_length(length)
                pieces.append(piece)
        return "".join(pieces)

    def _try(self, where: str) -> None:
        """Raise CheckpointError if the template cannot even render a greeting within its bounds."""
        values = {**self._special_tokens, "messages": _PROBE, "tools": None, "documents": None}
        try:
            self._render({**values, "add_generation_prompt": True})
        except TooCostly as error:
            raise CheckpointError(f"{where} costs too much to run: {error}; correct it") from None
        except _RENDER_ERRORS:
            pass  # it may want other messages than these


_ENVIRONMENT = ChatEnvironment()
