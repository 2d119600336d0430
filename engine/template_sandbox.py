"""The environment chat templates run in: transformers' features, no way to Python's insides, and a bounded cost.

A template comes with a model, and a sandbox alone keeps it from files and processes but not from computing for ever or
filling the memory. So every loop, macro and block counts, what is long is refused before it is made, and what no chat
template needs is not there. Thread safe: the budget of a rendering is its context's.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_RENDER_S = 1.0
"""CPU seconds. The longest chats take some milliseconds."""
MISSING_FUNCTIONS = frozenset({"lipsum", "cycler", "joiner"})
"""Jinja's own; no chat template needs them, and the first makes text without end."""
_STEPS_PER_LOOK = 64
_MAX_INTEGER_BITS = 4096
_MAX_WIDTH = 1000
_MISSING_FILTERS = frozenset(
    "batch center filesizeformat forceescape pprint random slice urlize wordwrap xmlattr".split()
)
_MISSING_METHODS = frozenset("center encode expandtabs format_map ljust maketrans rjust translate zfill".split())
"""Of texts: what they make is as long as a number says."""
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\*|[0-9]{4})")
_WIDE_BRACES = re.compile(r"[{:][^{}]*[0-9]{4}")


class TooCostly(jinja2.TemplateError):
    """A template computes too long or makes too much."""


class Refusal(jinja2.TemplateError):
    """A template rejects its messages, in its own words."""


class Budget:
    """What one rendering may still spend."""

    def __init__(self, max_characters: int) -> None:
        self.max_characters = max_characters
        self._num_steps = 0
        self._ends_s = time.thread_time() + MAX_RENDER_S

    def step(self) -> None:
        """Count one turn of a loop, or one call. Raises TooCostly."""
        self._num_steps += 1
        # The thread's own time: a busy machine is not the template's fault.
        if self._num_steps % _STEPS_PER_LOOK == 0 and time.thread_time() > self._ends_s:
            raise TooCostly(f"it computes for more than {MAX_RENDER_S:g} s")

    def check_length(self, length: int) -> None:
        """Raise TooCostly for something longer than the prompt may be."""
        if length > self.max_characters:
            raise TooCostly(f"it makes a text of more than {self.max_characters} characters")


UNLIMITED = Budget(sys.maxsize)
_BUDGET: ContextVar[Budget] = ContextVar("template_budget")
_FREE = Budget(_MAX_WIDTH)
"""While a template is compiled, constants are computed too."""


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Count what is rendered inside against `budget`."""
    token = _BUDGET.set(budget)
    try:
        yield
    finally:
        _BUDGET.reset(token)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=_bounded,
        )
        for name in _MISSING_FILTERS:
            del self.filters[name]
        self.filters |= {"tojson": _to_json, "format": _format, "indent": _indented(self.filters["indent"])}
        self.filters |= {"replace": _replace, "join": _joined(self.filters["join"]), "string": _text}
        for name in MISSING_FUNCTIONS:
            del self.globals[name]
        functions: dict[str, Callable[..., object]] = {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _Namespace,
        }
        self.globals.update(functions)

    def count_step(self) -> str:
        """Called at the start of every turn and call of a template."""
        _BUDGET.get(_FREE).step()
        return ""

    def concatenate(self, *parts: object) -> str:
        """What `~` does."""
        texts = [_text(part) for part in parts]
        _check_length(sum(map(len, texts)))
        return "".join(texts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may have it."""
        if isinstance(obj, str) and attr in _MISSING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return what stands for `str.format` if `value` is that. Raises TooCostly for wide formats."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _WIDE_BRACES.search(value.__self__):
            raise TooCostly("it formats with a width of thousands")
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return what an operator gives. Raises TooCostly."""
        match operator, left, right:
            case "%", str(), _:
                _check_percent(left, right)
            case "*", int(), int():
                _check_bits(left.bit_length() + right.bit_length())
            case "**", int(), int():
                _check_bits(left.bit_length() * max(right, 0))
            case "*", Sized(), int():
                _check_length(len(left) * right)
            case "*", int(), Sized():
                _check_length(left * len(right))
            case "+", Sized(), Sized():
                _check_length(len(left) + len(right))
            case _:
                pass
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Return what a call gives. Raises TooCostly."""
        text = __obj.__self__ if isinstance(__obj, BuiltinMethodType) else None
        if isinstance(text, str):
            match __obj.__name__, args:
                case "replace", (str(old), str(new), *_):
                    _check_length(len(text) + text.count(old) * len(new))
                case "join", (Sized() as parts,):
                    _check_length(len(text) * len(parts) + size_of(parts))
                case _:
                    pass
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _Counting().visit(template)
        return template


class _Counting(NodeTransformer):
    """Has every loop, macro and block count its turns, and `~` look at what it makes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("concatenate", node.nodes, node.lineno)

    def _counted(self, node: nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("count_step", [], node.lineno), lineno=node.lineno))
        return node


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    # A name of the environment's, which no template can set or hide.
    function = nodes.EnvironmentAttribute(method, lineno=line)
    return nodes.Call(function, arguments, [], None, None, lineno=line)


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
        raise jinja2.exceptions.SecurityError("a namespace attribute starts with an underscore")


def _raise_exception(message: object) -> NoReturn:
    raise Refusal(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _check_length(length: int) -> None:
    _BUDGET.get(_FREE).check_length(length)


def _check_bits(num_bits: int) -> None:
    if num_bits > _MAX_INTEGER_BITS:
        raise TooCostly("it computes with huge numbers")


def _check_percent(layout: str, values: object) -> None:
    if _WIDE_PERCENT.search(layout):
        raise TooCostly("it formats with a width of thousands")
    _check_length(len(layout) + size_of(values))


def _bounded(value: object) -> object:
    _check_length(size_of(value))
    return value


def _text(value: object) -> str:
    return str(_bounded(value))


def _replace(text: object, old: str, new: str, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    _check_length(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _format(text: str, *args: object, **kwargs: object) -> str:
    _check_percent(str(text), kwargs or args)
    return str(text) % (kwargs or args)


def _indented(indent: Callable[..., str]) -> Callable[..., str]:
    def checked(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        num_added = width if isinstance(width, int) else len(width)
        _check_length(len(text) + num_added * (text.count("\n") + 1))
        return indent(text, width, first, blank)

    return checked


def _joined(join: Callable[..., str]) -> Callable[..., str]:
    @jinja2.pass_eval_context
    def checked(context: nodes.EvalContext, values: Any, d: str = "", attribute: str | int | None = None) -> str:
        parts = list(values)
        _check_length(len(d) * len(parts) + size_of(parts))
        return join(context, parts, d, attribute)

    return checked


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and indent > _MAX_WIDTH:
        raise TooCostly("it formats with a width of thousands")
    _bounded(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def size_of(value: object) -> int:
    """Return the characters and items of plain data, or something over the budget: data can hold itself many times."""
    most = _BUDGET.get(_FREE).max_characters
    size = 0
    waiting: list[object] = [value]
    while waiting and size <= most:
        match waiting.pop():
            case str() as text:
                size += len(text)
            case Mapping() as pairs:
                size += len(pairs)
                waiting += [*pairs.keys(), *pairs.values()]
            case list() | tuple() as items:
                size += len(items)
                waiting += items
            case _:
                size += 1
    return size
